// The scenarios of ../SCENARIOS.md with amqp091-go.
package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

var scenarios = []scenario{
	{number: 1, name: "work_queue_acks_and_retry", run: workQueue},
	{number: 2, name: "topic_logs", run: topicLogs},
	{number: 3, name: "dead_letter_after_ttl", run: deadLetterAfterTTL},
	{number: 4, name: "dead_letter_after_three_retries", run: deadLetterAfterThreeRetries, braidOnly: true},
	{number: 5, name: "fanout_to_two_services", run: fanoutToTwoServices},
	{number: 6, name: "rpc_reply_queue", run: rpcReplyQueue},
	{number: 7, name: "rpc_direct_reply_to", run: rpcDirectReplyTo},
	{number: 8, name: "priorities", run: priorities},
	{number: 9, name: "headers_routing", run: headersRouting},
	{number: 10, name: "delayed_messages", run: delayedMessages},
	{number: 11, name: "confirms_and_mandatory_returns", run: confirmsAndReturns},
	{number: 12, name: "transactions", run: transactions},
	{number: 13, name: "exclusive_and_auto_delete", run: exclusiveAndAutoDelete},
	{number: 14, name: "single_active_consumer_failover", run: singleActiveConsumer},
	{number: 15, name: "prefetch_one_fairness", run: prefetchOne},
	{number: 16, name: "redelivery_order_after_consumer_dies", run: redeliveryOrder},
	{number: 17, name: "durable_survives_restart", run: durableSurvivesRestart, limit: 60 * time.Second},
	{number: 18, name: "retry_ladder_ttl", run: retryLadderTTL},
	{number: 19, name: "retry_ladder_delay", run: retryLadderDelay},
	{number: 20, name: "order_per_entity", run: orderPerEntity},
	{number: 21, name: "consumer_timeout", run: consumerTimeout, braidOnly: true},
	{number: 22, name: "errors_close_channel_not_connection", run: errorsCloseChannel},
	{number: 23, name: "basic_get_and_counts", run: basicGetAndCounts},
	{number: 24, name: "alternate_exchange", run: alternateExchange},
	{number: 25, name: "exchange_to_exchange", run: exchangeToExchange},
	{number: 26, name: "max_length_overflow", run: maxLengthOverflow},
	{number: 27, name: "large_messages", run: largeMessages},
	{number: 28, name: "properties_and_header_types_round_trip", run: propertiesRoundTrip},
	{number: 29, name: "many_channels", run: manyChannels},
	{number: 30, name: "quorum_queue_delivery_limit", run: quorumDeliveryLimit},
	{number: 31, name: "consumer_priority_and_cancel", run: consumerPriority},
	{number: 32, name: "nack_multiple_and_recover", run: nackMultipleAndRecover},
	{number: 33, name: "queue_expires", run: queueExpires},
	{number: 34, name: "unacked_requeued_on_close", run: unackedRequeued},
}

// seen is a list that consumers write.
type seen[T any] struct {
	mutex sync.Mutex
	items []T
}

func (s *seen[T]) add(item T) {
	s.mutex.Lock()
	s.items = append(s.items, item)
	s.mutex.Unlock()
}

func (s *seen[T]) all() []T {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return slices.Clone(s.items)
}

func (s *seen[T]) take(n int, what string) []T {
	until(func() bool { return len(s.all()) >= n }, func() string { return fmt.Sprintf("%d %s, have %s", n, what, short(s.all())) })
	return s.all()
}

func workQueue(r *run) {
	setup := r.channel()
	queue := r.queue(setup, declare{durable: true})
	var done, wrong seen[int]
	work := func(m message, _ int) {
		task, _ := strconv.Atoi(m.body())
		if task%3 == 0 && !m.Redelivered {
			_ = m.Nack(false, true)
			return
		}
		if m.Redelivered != (task%3 == 0) {
			wrong.add(task)
		}
		_ = m.Ack(false)
		done.add(task)
	}
	for range 2 {
		r.inbox(r.elsewhere(), queue, consume{prefetch: 1, onMessage: work})
	}
	for _, task := range numbers(0, 19) {
		put(setup, "", queue, task, amqp.Publishing{DeliveryMode: amqp.Persistent})
	}
	done.take(20, "tasks")
	quiet()
	tasks := done.all()
	sort.Ints(tasks)
	equal(tasks, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}, "tasks done")
	equal(len(wrong.all()), 0, "tasks with a wrong redelivered flag")
	equal(r.ready(queue), [2]int{0, 2}, "messages and consumers")
}

func topicLogs(r *run) {
	channel := r.channel()
	exchange := r.exchange(channel, "topic", declare{})
	keys := []string{"auth.error", "auth.info", "kernel.error", "kernel.info", "auth.login.error", "auth", ""}
	want := map[string][]string{"*.error": {"auth.error", "kernel.error"}, "#": keys, "auth.*": {"auth.error", "auth.info"}}
	boxes := map[string]*inbox{}
	for pattern := range want {
		queue := r.queue(channel, declare{exclusive: true})
		r.bind(channel, queue, exchange, pattern)
		boxes[pattern] = r.inbox(channel, queue, consume{autoAck: true})
	}
	for _, key := range keys {
		put(channel, exchange, key, key, amqp.Publishing{})
	}
	for pattern, expected := range want {
		boxes[pattern].take(len(expected))
	}
	quiet()
	for pattern, expected := range want {
		equal(boxes[pattern].bodies(), expected, "messages of "+pattern)
		for _, m := range boxes[pattern].all() {
			equal(m.RoutingKey, m.body(), "routing key")
		}
	}
}

func checkDeath(m message, index int, queue, reason string, count int64, exchange string, keys ...any) amqp.Table {
	deaths, ok := m.Headers["x-death"].([]any)
	check(ok && len(deaths) > index, "no x-death %d", index)
	death := deaths[index].(amqp.Table)
	got := []any{death["queue"], death["reason"], death["count"], death["exchange"], death["routing-keys"]}
	equal(got, []any{queue, reason, count, exchange, keys}, fmt.Sprintf("x-death %d", index))
	_, ok = death["time"].(time.Time)
	check(ok, "x-death time is a timestamp")
	return death
}

func checkFirstDeath(m message, reason, queue, exchange string) {
	got := []any{m.Headers["x-first-death-reason"], m.Headers["x-first-death-queue"], m.Headers["x-first-death-exchange"]}
	equal(got, []any{reason, queue, exchange}, "x-first-death")
}

func deadLetterAfterTTL(r *run) {
	channel := r.channel()
	dlx, letters := r.deadLetters(channel)
	byQueue := r.queue(channel, declare{args: amqp.Table{"x-message-ttl": 200, "x-dead-letter-exchange": dlx}})
	byMessage := r.queue(channel, declare{args: amqp.Table{"x-dead-letter-exchange": dlx, "x-dead-letter-routing-key": "moved"}})
	began := time.Now()
	put(channel, "", byQueue, "a", amqp.Publishing{Headers: amqp.Table{"mine": int32(7)}})
	letters.take(1)
	put(channel, "", byMessage, "b", amqp.Publishing{Expiration: "150"})
	letters.take(2)
	a, b := letters.all()[0], letters.all()[1]
	check(a.at.Sub(began) >= 200*time.Millisecond, "came before its TTL")
	equal(letters.bodies(), []string{"a", "b"}, "dead letters")
	equal([]string{a.Exchange, a.RoutingKey, b.Exchange, b.RoutingKey}, []string{dlx, byQueue, dlx, "moved"}, "exchanges and keys")
	_, has := checkDeath(a, 0, byQueue, "expired", 1, "", byQueue)["original-expiration"]
	check(!has, "a had no expiration")
	equal(a.Headers["mine"], int32(7), "own header")
	equal(checkDeath(b, 0, byMessage, "expired", 1, "", byMessage)["original-expiration"], "150", "original-expiration")
	equal(b.Expiration, "", "expiration of the dead letter")
	checkFirstDeath(a, "expired", byQueue, "")
	checkFirstDeath(b, "expired", byMessage, "")
}

func deadLetterAfterThreeRetries(r *run) {
	for _, how := range []string{"nack", "reject"} {
		channel := r.channel()
		dlx, letters := r.deadLetters(channel)
		queue := r.queue(channel, declare{args: amqp.Table{"x-max-retries": 3, "x-dead-letter-exchange": dlx}})
		var flags seen[bool]
		var good seen[string]
		r.inbox(channel, queue, consume{prefetch: 1, onMessage: func(m message, _ int) {
			if m.body() != "bad" {
				_ = m.Ack(false)
				good.add(m.body())
				return
			}
			flags.add(m.Redelivered)
			if how == "nack" {
				_ = m.Nack(false, true)
			} else {
				_ = m.Reject(true)
			}
		}})
		putAll(channel, queue, "before", "bad", "after")
		letters.take(1)
		good.take(2, "neighbours")
		quiet()
		equal(flags.all(), []bool{false, true, true, true}, "redelivered flags by "+how)
		equal(good.all(), []string{"before", "after"}, "neighbours")
		equal(letters.bodies(), []string{"bad"}, "dead letters")
		checkDeath(letters.all()[0], 0, queue, "delivery_limit", 1, "", queue)
		equal(r.ready(queue)[0], 0, "messages left")
	}
}

func fanoutToTwoServices(r *run) {
	channel := r.channel()
	exchange := r.exchange(channel, "fanout", declare{durable: true})
	queues := []string{r.queue(channel, declare{durable: true}), r.queue(channel, declare{durable: true})}
	boxes := []*inbox{}
	for _, queue := range queues {
		r.bind(channel, queue, exchange, "")
		r.bind(channel, queue, exchange, "another key")
		boxes = append(boxes, r.inbox(r.elsewhere(), queue, consume{ack: true}))
	}
	events := numbers(0, 9)
	for _, event := range events {
		put(channel, exchange, "any."+event, event, amqp.Publishing{})
	}
	for _, box := range boxes {
		box.take(10)
	}
	must(channel.QueueUnbind(queues[0], "", exchange, nil))
	must(channel.QueueUnbind(queues[0], "another key", exchange, nil))
	put(channel, exchange, "", "last", amqp.Publishing{})
	boxes[1].take(11)
	quiet()
	equal(boxes[0].bodies(), events, "first service")
	equal(boxes[1].bodies(), append(events, "last"), "second service")
}

func serveSquares(r *run, queue string) *seen[string] {
	names := &seen[string]{}
	server := r.elsewhere()
	r.inbox(server, queue, consume{prefetch: 1, onMessage: func(m message, _ int) {
		names.add(m.ReplyTo)
		n, _ := strconv.Atoi(m.body())
		_ = server.Publish("", m.ReplyTo, false, false, amqp.Publishing{CorrelationId: m.CorrelationId, Body: []byte(strconv.Itoa(n * n))})
		_ = m.Ack(false)
	}})
	return names
}

func callSquares(channel *amqp.Channel, requests, replyTo string, box *inbox) {
	for _, n := range numbers(0, 9) {
		put(channel, "", requests, n, amqp.Publishing{ReplyTo: replyTo, CorrelationId: "call-" + n})
	}
	answers := map[string]string{}
	for _, m := range box.take(10) {
		answers[m.CorrelationId] = m.body()
	}
	equal(len(answers), 10, "answers")
	for n := range 10 {
		equal(answers[fmt.Sprintf("call-%d", n)], strconv.Itoa(n*n), "answer")
	}
}

func rpcReplyQueue(r *run) {
	channel := r.channel()
	requests := r.queue(channel, declare{})
	serveSquares(r, requests)
	replies := must1(channel.QueueDeclare("", false, false, true, false, nil)).Name
	check(strings.HasPrefix(replies, "amq.gen-"), "server-named queue is %s", replies)
	callSquares(channel, requests, replies, r.inbox(channel, replies, consume{autoAck: true}))
}

func rpcDirectReplyTo(r *run) {
	channel := r.channel()
	requests := r.queue(channel, declare{})
	names := serveSquares(r, requests)
	const direct = "amq.rabbitmq.reply-to"
	callSquares(channel, requests, direct, r.inbox(channel, direct, consume{autoAck: true}))
	for _, name := range names.all() {
		check(strings.HasPrefix(name, direct+"."), "reply-to was rewritten: %s", name)
	}
	refused(r.channel(), 406, "PRECONDITION_FAILED - fast reply consumer does not exist", "no reply consumer", func(c *amqp.Channel) error {
		return c.Publish("", requests, false, false, amqp.Publishing{ReplyTo: direct, Body: []byte("1")})
	})
}

func priorities(r *run) {
	channel := r.channel()
	queue := r.queue(channel, declare{args: amqp.Table{"x-max-priority": 10}})
	sent := []struct {
		body     string
		priority uint8
	}{{"low1", 1}, {"none1", 0}, {"high1", 9}, {"mid1", 5}, {"low2", 1}, {"over1", 200}, {"none2", 0}, {"high2", 9}, {"top1", 10}, {"mid2", 5}}
	for _, s := range sent {
		put(channel, "", queue, s.body, amqp.Publishing{Priority: s.priority})
	}
	r.untilReady(queue, len(sent))
	box := r.inbox(channel, queue, consume{prefetch: 1, ack: true})
	box.take(len(sent))
	equal(box.bodies(), []string{"over1", "top1", "high1", "high2", "mid1", "mid2", "low1", "low2", "none1", "none2"}, "order")
}

func headersRouting(r *run) {
	channel := r.channel()
	exchange := r.exchange(channel, "headers", declare{})
	bindings := []struct {
		name string
		args amqp.Table
		want []string
	}{
		{"all", amqp.Table{"x-match": "all", "type": "report", "format": "pdf", "x-ignored": "1"}, []string{"1", "8"}},
		{"default", amqp.Table{"type": "report", "format": "pdf"}, []string{"1", "8"}},
		{"any", amqp.Table{"x-match": "any", "type": "report", "format": "pdf", "x-ignored": "1"}, []string{"1", "2", "8"}},
		{"all-with-x", amqp.Table{"x-match": "all-with-x", "type": "report", "x-tenant": "a"}, []string{"2"}},
		{"any-with-x", amqp.Table{"x-match": "any-with-x", "type": "log", "x-tenant": "a"}, []string{"2", "3", "4"}},
		{"number", amqp.Table{"x-match": "all", "size": 3}, []string{"5"}},
		{"exists", amqp.Table{"x-match": "all", "format": nil}, []string{"1", "2", "8"}},
	}
	queues := map[string]string{}
	for _, b := range bindings {
		queues[b.name] = r.queue(channel, declare{})
		if err := channel.QueueBind(queues[b.name], "", exchange, false, b.args); err != nil {
			if strings.HasSuffix(b.name, "-with-x") && !r.braid {
				panic(skip("peer refuses " + b.name))
			}
			panic(err)
		}
	}
	headers := []amqp.Table{
		{"type": "report", "format": "pdf"}, {"type": "report", "format": "txt", "x-tenant": "a"}, {"type": "log", "x-ignored": "1"},
		{"x-tenant": "a"}, {"size": 3, "other": true}, {"size": 4}, {}, {"type": "report", "format": "pdf", "x-tenant": "b", "x-ignored": "2"}, nil,
	}
	for i, h := range headers {
		put(channel, exchange, "whatever", strconv.Itoa(i+1), amqp.Publishing{Headers: h})
	}
	r.untilReady(queues["any"], 3)
	for _, b := range bindings {
		r.untilReady(queues[b.name], len(b.want))
		equal(bodies(r.drain(queues[b.name])), b.want, "messages of "+b.name)
	}
}

func delayedMessages(r *run) {
	exchange := r.pluginExchange("x-delayed-message", declare{durable: true, args: amqp.Table{"x-delayed-type": "direct"}})
	channel := r.channel()
	queue := r.queue(channel, declare{})
	r.bind(channel, queue, exchange, "k")
	box := r.inbox(channel, queue, consume{autoAck: true})
	sent := map[int]time.Time{}
	for _, delay := range []int{900, 300, 600, 0} {
		sent[delay] = time.Now()
		headers := amqp.Table{}
		if delay > 0 {
			headers["x-delay"] = delay
		}
		put(channel, exchange, "k", strconv.Itoa(delay), amqp.Publishing{Headers: headers})
	}
	box.take(4)
	equal(box.bodies(), []string{"0", "300", "600", "900"}, "order")
	for _, m := range box.all() {
		delay, _ := strconv.Atoi(m.body())
		waited := m.at.Sub(sent[delay])
		check(waited >= time.Duration(delay)*time.Millisecond, "%d came after %s", delay, waited)
	}
}

func confirmsAndReturns(r *run) {
	channel := r.confirming()
	exchange := r.exchange(channel, "direct", declare{})
	queue := r.queue(channel, declare{durable: true})
	r.bind(channel, queue, exchange, "k")
	returns := channel.NotifyReturn(make(chan amqp.Return, 10))
	confirms := []*amqp.DeferredConfirmation{}
	for _, n := range numbers(0, 99) {
		confirms = append(confirms, must1(channel.PublishWithDeferredConfirm(exchange, "k", true, false, amqp.Publishing{DeliveryMode: 2, Body: []byte(n)})))
	}
	for _, c := range confirms {
		check(c.Wait(), "a publish was nacked")
	}
	equal(r.ready(queue)[0], 100, "messages after their confirms")
	equal(len(returns), 0, "returns")
	back := amqp.Publishing{Headers: amqp.Table{"a": int32(1)}, MessageId: "m1", ContentType: "text/plain", Body: []byte("come back")}
	check(confirmed(channel, exchange, "nowhere", true, back), "an unroutable message was nacked")
	equal(len(returns), 1, "returns before the confirm")
	got := <-returns
	equal([]any{got.ReplyCode, got.ReplyText, got.Exchange, got.RoutingKey}, []any{uint16(312), "NO_ROUTE", exchange, "nowhere"}, "return")
	equal([]any{got.Headers, got.MessageId, got.ContentType, string(got.Body)}, []any{amqp.Table{"a": int32(1)}, "m1", "text/plain", "come back"}, "message returned")
	check(confirmed(channel, exchange, "nowhere", false, amqp.Publishing{Body: []byte("dropped")}), "not mandatory")
	check(confirmed(channel, exchange, "k", true, amqp.Publishing{Body: []byte("last")}), "last")
	equal(len(returns), 0, "returns in the end")
	equal(bodies(r.drain(queue)), append(numbers(0, 99), "last"), "messages")
}

func transactions(r *run) {
	channel := r.channel()
	queue := r.queue(channel, declare{})
	must(channel.Tx())
	putAll(channel, queue, "a", "b")
	quiet()
	equal(r.ready(queue)[0], 0, "ready before commit")
	must(channel.TxCommit())
	equal(r.ready(queue)[0], 2, "ready after commit")
	putAll(channel, queue, "c")
	must(channel.TxRollback())
	must(channel.TxCommit())
	equal(r.ready(queue)[0], 2, "ready after rollback")
	m, _ := get(channel, queue, false)
	equal(m.body(), "a", "first message")
	must(m.Ack(false))
	must(channel.TxRollback())
	equal(r.ready(queue)[0], 1, "ready after the ack was rolled back")
	must(channel.Close())
	r.untilReady(queue, 2)
	channel = r.channel()
	must(channel.Tx())
	m, _ = get(channel, queue, false)
	equal([]any{m.body(), m.Redelivered}, []any{"a", true}, "the message comes again")
	must(m.Ack(false))
	putAll(channel, queue, "d")
	must(channel.TxCommit())
	must(channel.Close())
	quiet()
	equal(bodies(r.drain(queue)), []string{"b", "d"}, "messages in the end")
	channel = r.channel()
	must(channel.Tx())
	refused(channel, 406, "PRECONDITION_FAILED - cannot switch from tx to confirm mode", "confirm.select in tx mode", func(c *amqp.Channel) error { return c.Confirm(false) })
}

func locked(queue string) string {
	return "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '" + queue + "' in vhost '/'. It could be originally declared on " +
		"another connection or the exclusive property value does not match that of the original declaration."
}

func exclusiveAndAutoDelete(r *run) {
	owner := r.connect()
	mine := r.queue(must1(owner.Channel()), declare{exclusive: true})
	for _, action := range []func(*amqp.Channel) error{
		func(c *amqp.Channel) error {
			_, err := c.QueueDeclare(mine, false, false, true, false, nil)
			return err
		},
		func(c *amqp.Channel) error {
			_, err := c.QueueDeclarePassive(mine, false, false, false, false, nil)
			return err
		},
		func(c *amqp.Channel) error {
			_, err := c.Consume(mine, "", false, false, false, false, nil)
			return err
		},
		func(c *amqp.Channel) error { _, err := c.QueueDelete(mine, false, false, false); return err },
	} {
		refused(r.channel(), 405, locked(mine), "exclusive queue of another connection", action)
	}
	must(owner.Close())
	check(r.gone("queue", mine), "the exclusive queue outlived its connection")

	channel := r.channel()
	queue := r.queue(channel, declare{autoDelete: true})
	putAll(channel, queue, "x")
	check(!r.gone("queue", queue), "auto-delete before any consumer")
	first, second := r.inbox(channel, queue, consume{autoAck: true}), r.inbox(r.channel(), queue, consume{autoAck: true})
	first.cancel()
	check(!r.gone("queue", queue), "auto-delete with a consumer left")
	second.cancel()
	check(r.gone("queue", queue), "auto-delete queue is there after its last consumer")

	exchange := r.exchange(channel, "fanout", declare{autoDelete: true})
	target := r.queue(channel, declare{})
	check(!r.gone("exchange", exchange), "auto-delete exchange before any binding")
	r.bind(channel, target, exchange, "1")
	r.bind(channel, target, exchange, "2")
	must(channel.QueueUnbind(target, "1", exchange, nil))
	check(!r.gone("exchange", exchange), "auto-delete exchange with a binding left")
	must(channel.QueueUnbind(target, "2", exchange, nil))
	check(r.gone("exchange", exchange), "auto-delete exchange is there after its last binding")
}

func singleActiveConsumer(r *run) {
	setup := r.channel()
	queue := r.queue(setup, declare{args: amqp.Table{"x-single-active-consumer": true}})
	secondConnection := r.connect()
	first := r.inbox(r.channel(), queue, consume{ack: true})
	second := r.inbox(must1(secondConnection.Channel()), queue, consume{})
	third := r.inbox(r.elsewhere(), queue, consume{ack: true})
	putAll(setup, queue, numbers(1, 3)...)
	first.take(3)
	quiet()
	equal([]int{len(second.all()), len(third.all())}, []int{0, 0}, "messages of those who wait")
	first.cancel()
	putAll(setup, queue, numbers(4, 6)...)
	second.take(3)
	quiet()
	equal([]int{len(first.all()), len(third.all())}, []int{3, 0}, "messages of the others after the cancel")
	r.cut(secondConnection)
	third.take(3)
	putAll(setup, queue, "7")
	third.take(4)
	equal(third.bodies(), numbers(4, 7), "messages of the third")
	equal(third.redelivered(), []bool{true, true, true, false}, "redelivered")
}

func prefetchOne(r *run) {
	channel := r.channel()
	queue := r.queue(channel, declare{})
	slow := r.inbox(r.elsewhere(), queue, consume{prefetch: 1})
	putAll(channel, queue, "first")
	slow.take(1)
	quick := r.inbox(r.elsewhere(), queue, consume{prefetch: 1, ack: true})
	putAll(channel, queue, numbers(0, 18)...)
	quick.take(19)
	quiet()
	equal(slow.bodies(), []string{"first"}, "messages of the slow worker")
	equal(quick.bodies(), numbers(0, 18), "messages of the quick worker")
	quick.cancel()
	putAll(channel, queue, "next")
	quiet()
	equal(len(slow.all()), 1, "a second delivery without an ack")
	must(slow.all()[0].Ack(false))
	slow.take(2)
	equal(slow.bodies(), []string{"first", "next"}, "messages of the slow worker in the end")
	must(slow.all()[1].Ack(false))
}

func redeliveryOrder(r *run) {
	channel := r.channel()
	queue := r.queue(channel, declare{})
	putAll(channel, queue, numbers(1, 20)...)
	r.untilReady(queue, 20)
	dying := r.connect()
	first := r.inbox(must1(dying.Channel()), queue, consume{prefetch: 10})
	first.take(10)
	must(first.all()[2].Ack(false))
	must(first.all()[4].Ack(false))
	first.take(12)
	quiet()
	equal(first.bodies(), numbers(1, 12), "messages of the first")
	r.cut(dying)
	r.untilReady(queue, 18)
	second := r.inbox(channel, queue, consume{ack: true})
	second.take(18)
	want, flags := []string{}, []bool{}
	for n := 1; n <= 20; n++ {
		if n != 3 && n != 5 {
			want, flags = append(want, strconv.Itoa(n)), append(flags, n <= 12)
		}
	}
	equal(second.bodies(), want, "messages of the second")
	equal(second.redelivered(), flags, "redelivered")
}

func durableSurvivesRestart(r *run) {
	if r.restartCmd == "" {
		panic(skip("no --restart-cmd"))
	}
	channel := r.confirming()
	args := amqp.Table{"x-max-length": 1000}
	queue := r.queue(channel, declare{durable: true, args: args})
	exchange := r.exchange(channel, "topic", declare{durable: true})
	passing := r.exchange(channel, "topic", declare{})
	r.bind(channel, queue, exchange, "a.*")
	transient := r.queue(r.channel(), declare{})
	even := []string{}
	for n := range 50 {
		mode := amqp.Transient
		if n%2 == 0 {
			mode = amqp.Persistent
			even = append(even, strconv.Itoa(n))
		}
		properties := amqp.Publishing{DeliveryMode: mode, MessageId: fmt.Sprintf("m%d", n), Headers: amqp.Table{"n": int32(n)}, Body: []byte(strconv.Itoa(n))}
		check(confirmed(channel, exchange, "a.b", false, properties), "a publish was nacked")
	}
	equal(r.ready(queue)[0], 50, "messages before")
	r.restart()
	channel = r.confirming()
	r.queue(channel, declare{name: queue, durable: true, args: args})
	r.exchange(channel, "topic", declare{name: exchange, durable: true})
	check(r.gone("queue", transient), "the transient queue is there")
	check(r.gone("exchange", passing), "the transient exchange is there")
	check(confirmed(channel, exchange, "a.c", true, amqp.Publishing{DeliveryMode: 2, Body: []byte("new")}), "new")
	messages := r.drain(queue)
	equal(bodies(messages), append(slices.Clone(even), "new"), "messages after")
	for i, m := range messages[:len(even)] {
		n, _ := strconv.Atoi(even[i])
		equal([]any{m.MessageId, m.Headers["n"], m.Exchange, m.RoutingKey}, []any{fmt.Sprintf("m%d", n), int32(n), exchange, "a.b"}, "properties of a message")
	}
}

func retryLadderTTL(r *run) {
	channel := r.channel()
	toWait, toWork := r.exchange(channel, "direct", declare{}), r.exchange(channel, "direct", declare{})
	work := r.queue(channel, declare{args: amqp.Table{"x-dead-letter-exchange": toWait}})
	wait := r.queue(channel, declare{args: amqp.Table{"x-dead-letter-exchange": toWork, "x-message-ttl": 200}})
	r.bind(channel, work, toWork, "job")
	r.bind(channel, wait, toWait, "job")
	box := r.inbox(channel, work, consume{prefetch: 1, onMessage: func(m message, seen int) {
		if seen < 3 {
			_ = m.Reject(false)
		} else {
			_ = m.Ack(false)
		}
	}})
	put(channel, toWork, "job", "task", amqp.Publishing{})
	box.take(3)
	first, second, third := box.all()[0], box.all()[1], box.all()[2]
	check(first.Headers["x-death"] == nil, "x-death at the first delivery")
	check(second.at.Sub(first.at) >= 200*time.Millisecond && third.at.Sub(second.at) >= 200*time.Millisecond, "came before the TTL")
	equal(len(second.Headers["x-death"].([]any)), 2, "entries of x-death at the second delivery")
	equal(len(third.Headers["x-death"].([]any)), 2, "entries of x-death at the third delivery")
	checkDeath(third, 0, wait, "expired", 2, toWait, "job")
	checkDeath(third, 1, work, "rejected", 2, toWork, "job")
	checkFirstDeath(third, "rejected", work, toWork)
	quiet()
	equal([]int{r.ready(work)[0], r.ready(wait)[0]}, []int{0, 0}, "messages left")
}

func retryLadderDelay(r *run) {
	exchange := r.pluginExchange("x-delayed-message", declare{args: amqp.Table{"x-delayed-type": "topic"}})
	channel := r.channel()
	queue := r.queue(channel, declare{})
	r.bind(channel, queue, exchange, "job.#")
	var sent seen[time.Time]
	box := r.inbox(channel, queue, consume{prefetch: 1, onMessage: func(m message, _ int) {
		attempt, _ := m.Headers["attempt"].(int32)
		if attempt < 3 {
			sent.add(time.Now())
			headers := amqp.Table{"attempt": attempt + 1, "x-delay": int32(200 << (attempt - 1))}
			_ = channel.Publish(exchange, "job.again", false, false, amqp.Publishing{Headers: headers, Body: m.Body})
		}
		_ = m.Ack(false)
	}})
	put(channel, exchange, "job.first", "task", amqp.Publishing{Headers: amqp.Table{"attempt": int32(1)}})
	box.take(3)
	quiet()
	messages := box.all()
	equal(len(messages), 3, "attempts")
	for i, at := range sent.all() {
		equal(messages[i+1].Headers["attempt"], int32(i+2), "attempt")
		waited := messages[i+1].at.Sub(at)
		check(waited >= time.Duration(200<<i)*time.Millisecond, "came after %s", waited)
	}
}

func orderPerEntity(r *run) {
	exchange := r.pluginExchange("x-consistent-hash", declare{durable: true})
	channel := r.confirming()
	type event struct{ who, body string }
	var events seen[event]
	workers := []*amqp.Connection{r.connect(), r.connect()}
	for q := range 3 {
		queue := r.queue(channel, declare{args: amqp.Table{"x-single-active-consumer": true}})
		r.bind(channel, queue, exchange, "1")
		for w, worker := range workers {
			r.inbox(must1(worker.Channel()), queue, consume{prefetch: 5, ack: true, onMessage: func(m message, _ int) {
				events.add(event{fmt.Sprintf("%d/%d", q, w), m.body()})
			}})
		}
	}
	for n := range 10 {
		for entity := range 30 {
			put(channel, exchange, fmt.Sprintf("entity-%d", entity), fmt.Sprintf("%d:%d", entity, n), amqp.Publishing{})
		}
	}
	events.take(300, "events")
	quiet()
	all := events.all()
	equal(len(all), 300, "events")
	for entity := range 30 {
		who, got, want := map[string]bool{}, []string{}, []string{}
		for _, e := range all {
			if strings.HasPrefix(e.body, fmt.Sprintf("%d:", entity)) {
				who[e.who] = true
				got = append(got, e.body)
			}
		}
		for n := range 10 {
			want = append(want, fmt.Sprintf("%d:%d", entity, n))
		}
		equal(len(who), 1, "consumers of an entity")
		equal(got, want, "order of an entity")
	}
}

func consumerTimeout(r *run) {
	setup := r.channel()
	queue := r.queue(setup, declare{args: amqp.Table{"x-consumer-timeout": 1000}})
	stuck := r.inbox(r.elsewhere(), queue, consume{prefetch: 1})
	putAll(setup, queue, "held")
	stuck.take(1)
	other := r.inbox(r.elsewhere(), queue, consume{ack: true})
	other.take(1)
	equal([]any{stuck.redelivered(), other.bodies(), other.redelivered()}, []any{[]bool{false}, []string{"held"}, []bool{true}}, "what the workers get")
	check(other.all()[0].at.Sub(stuck.all()[0].at) >= 900*time.Millisecond, "came before the timeout")
	until(stuck.wasCancelled, func() string { return "basic.cancel" })
	must1(stuck.channel.QueueDeclarePassive(queue, false, false, false, false, nil))
}

func errorsCloseChannel(r *run) {
	witness := r.channel()
	queue := r.queue(witness, declare{durable: true})
	exchange := r.exchange(witness, "direct", declare{})
	none := r.name("none")
	lockedQueue := r.queue(r.elsewhere(), declare{exclusive: true})
	consumed := r.queue(witness, declare{})
	r.inbox(r.channel(), consumed, consume{exclusive: true})
	filled := r.queue(witness, declare{})
	putAll(witness, filled, "x")
	r.untilReady(filled, 1)
	noQueue := fmt.Sprintf("NOT_FOUND - no queue '%s' in vhost '/'", none)
	noExchange := fmt.Sprintf("NOT_FOUND - no exchange '%s' in vhost '/'", none)
	bad := func(format string, args ...any) string {
		return "PRECONDITION_FAILED - " + fmt.Sprintf(format, args...)
	}
	declareQueue := func(name string, durable, exclusive bool, args amqp.Table) func(*amqp.Channel) error {
		return func(c *amqp.Channel) error {
			_, err := c.QueueDeclare(name, durable, false, exclusive, false, args)
			return err
		}
	}
	publish := func(exchange, key string, properties amqp.Publishing) func(*amqp.Channel) error {
		return func(c *amqp.Channel) error { return c.Publish(exchange, key, false, false, properties) }
	}
	consumeFrom := func(name string) func(*amqp.Channel) error {
		return func(c *amqp.Channel) error {
			_, err := c.Consume(name, "", false, false, false, false, nil)
			return err
		}
	}
	deleteQueue := func(name string, ifUnused, ifEmpty bool) func(*amqp.Channel) error {
		return func(c *amqp.Channel) error { _, err := c.QueueDelete(name, ifUnused, ifEmpty, false); return err }
	}
	bindTo := func(exchange string) func(*amqp.Channel) error {
		return func(c *amqp.Channel) error { return c.QueueBind(queue, "k", exchange, false, nil) }
	}
	type refusal struct {
		code   int
		text   string
		action func(*amqp.Channel) error
	}
	cases := []refusal{
		{404, noQueue, func(c *amqp.Channel) error {
			_, err := c.QueueDeclarePassive(none, false, false, false, false, nil)
			return err
		}},
		{404, noExchange, func(c *amqp.Channel) error {
			return c.ExchangeDeclarePassive(none, "direct", false, false, false, false, nil)
		}},
		{404, noExchange, publish(none, queue, amqp.Publishing{})},
		{404, noQueue, consumeFrom(none)},
		{404, noExchange, bindTo(none)},
		{406, bad("inequivalent arg 'durable' for queue '%s' in vhost '/': received 'false' but current is 'true'", queue), declareQueue(queue, false, false, nil)},
		{
			406, bad("inequivalent arg 'x-max-length' for queue '%s' in vhost '/': received the value '10' of type 'signedint' but current is none", queue),
			declareQueue(queue, true, false, amqp.Table{"x-max-length": int32(10)}),
		},
		{
			406, bad("inequivalent arg 'type' for exchange '%s' in vhost '/': received 'fanout' but current is 'direct'", exchange),
			func(c *amqp.Channel) error {
				return c.ExchangeDeclare(exchange, "fanout", false, false, false, false, nil)
			},
		},
		{406, bad("invalid arg 'x-message-ttl' for queue '%s' in vhost '/': {value_negative,-10}", none), declareQueue(none, false, false, amqp.Table{"x-message-ttl": int32(-10)})},
		{406, bad("unknown delivery tag 5"), func(c *amqp.Channel) error { return c.Ack(5, false) }},
		{406, bad("queue '%s' in vhost '/' in use", consumed), deleteQueue(consumed, true, false)},
		{406, bad("queue '%s' in vhost '/' not empty", filled), deleteQueue(filled, false, true)},
		{406, bad("invalid expiration 'foo': no_integer"), publish("", queue, amqp.Publishing{Expiration: "foo"})},
		{403, fmt.Sprintf("ACCESS_REFUSED - queue name 'amq.%s' contains reserved prefix 'amq.*'", none), declareQueue("amq."+none, false, false, nil)},
		{403, "ACCESS_REFUSED - operation not permitted on the default exchange", bindTo("")},
		{403, fmt.Sprintf("ACCESS_REFUSED - queue '%s' in vhost '/' in exclusive use", consumed), consumeFrom(consumed)},
		{405, locked(lockedQueue), declareQueue(lockedQueue, false, true, nil)},
	}
	if r.braid {
		cases = append(cases, refusal{406, bad("unknown exchange type 'x-nope'"), func(c *amqp.Channel) error {
			return c.ExchangeDeclare(none, "x-nope", false, false, false, false, nil)
		}})
	}
	for i, c := range cases {
		refused(r.channel(), c.code, c.text, fmt.Sprintf("case %d", i), c.action)
	}
	check(!r.connection.IsClosed(), "the connection is closed")
	putAll(witness, queue, "fine")
	r.untilReady(queue, 1)
}

func basicGetAndCounts(r *run) {
	channel := r.channel()
	queue := r.queue(channel, declare{})
	_, ok := get(channel, queue, false)
	check(!ok, "get of an empty queue")
	putAll(channel, queue, "a", "b", "c", "d")
	r.untilReady(queue, 4)
	a, _ := get(channel, queue, false)
	equal([]any{a.body(), a.MessageCount, a.Redelivered, a.Exchange, a.RoutingKey}, []any{"a", uint32(3), false, "", queue}, "first get")
	equal(r.ready(queue), [2]int{3, 0}, "ready and consumers with one unacked")
	b, _ := get(channel, queue, true)
	equal([]any{b.body(), b.MessageCount}, []any{"b", uint32(2)}, "second get")
	equal(must1(channel.QueueDeclare(queue, false, false, false, false, nil)), amqp.Queue{Name: queue, Messages: 2, Consumers: 0}, "declare-ok")
	equal(must1(channel.QueuePurge(queue, false)), 2, "purge-ok")
	putAll(channel, queue, "e")
	r.untilReady(queue, 1)
	must(a.Nack(false, true))
	r.untilReady(queue, 2)
	box := r.inbox(r.channel(), queue, consume{prefetch: 1})
	box.take(1)
	equal([]any{box.bodies(), box.redelivered()}, []any{[]string{"a"}, []bool{true}}, "the message requeued")
	equal(r.ready(queue), [2]int{1, 1}, "ready and consumers with a consumer")
	equal(must1(channel.QueueDelete(queue, false, false, false)), 1, "delete-ok")
	equal(must1(channel.QueueDelete(queue, false, false, false)), 0, "delete-ok of a missing queue")
	must(channel.ExchangeDelete(r.name("none"), false, false))
}

func alternateExchange(r *run) {
	channel := r.confirming()
	alternate := r.exchange(channel, "direct", declare{})
	exchange := r.exchange(channel, "direct", declare{args: amqp.Table{"alternate-exchange": alternate}})
	known, rest := r.queue(channel, declare{}), r.queue(channel, declare{})
	r.bind(channel, known, exchange, "known")
	r.bind(channel, rest, alternate, "unknown")
	returns := channel.NotifyReturn(make(chan amqp.Return, 10))
	for i, key := range []string{"known", "unknown", "neither"} {
		check(confirmed(channel, exchange, key, true, amqp.Publishing{Body: []byte(strconv.Itoa(i + 1))}), key)
	}
	equal(len(returns), 1, "returns")
	back := <-returns
	equal([]string{string(back.Body), back.Exchange, back.RoutingKey}, []string{"3", exchange, "neither"}, "returned")
	equal(bodies(r.drain(known)), []string{"1"}, "main queue")
	others := r.drain(rest)
	equal(bodies(others), []string{"2"}, "queue of the alternate exchange")
	equal([]string{others[0].Exchange, others[0].RoutingKey}, []string{exchange, "unknown"}, "exchange and key")
}

func exchangeToExchange(r *run) {
	channel := r.confirming()
	source, middle := r.exchange(channel, "topic", declare{}), r.exchange(channel, "fanout", declare{})
	one, both := r.queue(channel, declare{}), r.queue(channel, declare{})
	must(channel.ExchangeBind(middle, "a.#", source, false, nil))
	must(channel.ExchangeBind(source, "", middle, false, nil))
	r.bind(channel, one, middle, "")
	r.bind(channel, both, middle, "")
	r.bind(channel, both, source, "a.b")
	publish := func(exchange, key, body string) {
		check(confirmed(channel, exchange, key, false, amqp.Publishing{Body: []byte(body)}), "nacked")
	}
	publish(source, "a.b", "1")
	publish(source, "b", "2")
	publish(middle, "b", "3")
	publish(middle, "a.b", "4")
	equal(bodies(r.drain(one)), []string{"1", "3", "4"}, "queue at the middle")
	messages := r.drain(both)
	equal(bodies(messages), []string{"1", "3", "4"}, "queue at both")
	equal([]string{messages[0].Exchange, messages[1].Exchange, messages[2].Exchange}, []string{source, middle, middle}, "exchanges")
	must(channel.ExchangeUnbind(middle, "a.#", source, false, nil))
	publish(source, "a.c", "5")
	publish(source, "a.b", "6")
	equal(bodies(r.drain(one)), []string{}, "queue at the middle after unbind")
	equal(bodies(r.drain(both)), []string{"6"}, "queue at both after unbind")
}

func maxLengthOverflow(r *run) {
	channel := r.confirming()
	dlx, letters := r.deadLetters(channel)
	fill := func(args amqp.Table, list []string) (queue string, nacked, kept []string) {
		args["x-dead-letter-exchange"] = dlx
		queue, nacked = r.queue(channel, declare{args: args}), []string{}
		for _, body := range list {
			if !confirmed(channel, "", queue, false, amqp.Publishing{Body: []byte(body)}) {
				nacked = append(nacked, body)
			}
		}
		return queue, nacked, bodies(r.drain(queue))
	}
	none, five := []string{}, numbers(1, 5)
	queue, nacked, kept := fill(amqp.Table{"x-max-length": 3}, five)
	equal([][]string{nacked, kept}, [][]string{none, {"3", "4", "5"}}, "drop-head")
	letters.take(2)
	equal(letters.bodies(), []string{"1", "2"}, "dead letters of drop-head")
	checkDeath(letters.all()[0], 0, queue, "maxlen", 1, "", queue)
	_, nacked, kept = fill(amqp.Table{"x-max-length": 3, "x-overflow": "reject-publish"}, five)
	equal([][]string{nacked, kept}, [][]string{{"4", "5"}, {"1", "2", "3"}}, "reject-publish")
	quiet()
	equal(len(letters.all()), 2, "dead letters of reject-publish")
	queue, nacked, kept = fill(amqp.Table{"x-max-length": 3, "x-overflow": "reject-publish-dlx"}, five)
	equal([][]string{nacked, kept}, [][]string{{"4", "5"}, {"1", "2", "3"}}, "reject-publish-dlx")
	letters.take(4)
	equal(letters.bodies()[2:], []string{"4", "5"}, "dead letters of reject-publish-dlx")
	checkDeath(letters.all()[2], 0, queue, "maxlen", 1, "", queue)
	_, nacked, kept = fill(amqp.Table{"x-max-length-bytes": 10}, []string{"aaaa", "bbbb", "cccc"})
	equal([][]string{nacked, kept}, [][]string{none, {"bbbb", "cccc"}}, "x-max-length-bytes")
}

func largeMessages(r *run) {
	channel := r.confirming()
	queue := r.queue(channel, declare{})
	list := [][]byte{}
	for _, size := range []int{0, 1, 131063, 131064, 131065, 2 * 131064, 2*131064 + 1, 4 << 20} {
		body := make([]byte, size)
		must1(rand.Read(body))
		list = append(list, body)
	}
	box := r.inbox(r.channel(), queue, consume{ack: true})
	for _, body := range list {
		check(confirmed(channel, "", queue, false, amqp.Publishing{DeliveryMode: 2, Body: body}), "nacked")
	}
	messages := box.take(len(list))
	for i, body := range list {
		check(bytes.Equal(messages[i].Body, body), "body of %d bytes is another, %d bytes", len(body), len(messages[i].Body))
	}
	box.cancel()
	largest := list[len(list)-1]
	check(confirmed(channel, "", queue, false, amqp.Publishing{Body: largest}), "nacked")
	check(bytes.Equal(getSoon(channel, queue, true).Body, largest), "body by get is another")
}

func propertiesRoundTrip(r *run) {
	channel := r.channel()
	queue := r.queue(channel, declare{durable: true})
	when := time.Unix(1767323045, 0)
	headers := amqp.Table{
		"yes": true, "no": false, "int8": int8(-128), "uint8": uint8(255), "int16": int16(-32768), "uint16": uint16(65535),
		"int32": int32(-1 << 31), "uint32": uint32(1<<32 - 1), "int64": int64(-1 << 63), "int64max": int64(1<<63 - 1),
		"float": float32(1.5), "double": 3.14159, "decimal": amqp.Decimal{Scale: 2, Value: 314}, "time": when,
		"string": "grün", "empty": "", "long": strings.Repeat("x", 5000), "bytes": []byte{0, 255, 254}, "void": nil,
		"table": amqp.Table{"a": int32(1), "deeper": amqp.Table{"b": []any{int32(1), "two", amqp.Table{"c": nil}}}, "none": amqp.Table{}},
		"array": []any{int32(1), int64(-1), "s", true, []any{int32(2), []any{int16(3)}}, amqp.Table{"k": "v"}, nil, 1.5, when},
	}
	sent := amqp.Publishing{
		Headers: headers, ContentType: "text/plain", ContentEncoding: "utf-8", DeliveryMode: 2, Priority: 7, CorrelationId: "corr", ReplyTo: "somewhere",
		Expiration: "600000", MessageId: strings.Repeat("m", 255), Timestamp: when, Type: "kind", UserId: "guest", AppId: "app",
	}
	put(channel, "", queue, "x", sent)
	put(channel, "", queue, "bare", amqp.Publishing{})
	m, bare := getSoon(channel, queue, true), getSoon(channel, queue, true)
	properties := func(m message) []any {
		return []any{m.ContentType, m.ContentEncoding, m.DeliveryMode, m.Priority, m.CorrelationId, m.ReplyTo, m.Expiration, m.MessageId, m.Timestamp, m.Type, m.UserId, m.AppId}
	}
	equal(properties(m), []any{"text/plain", "utf-8", uint8(2), uint8(7), "corr", "somewhere", "600000", sent.MessageId, when, "kind", "guest", "app"}, "properties")
	equal(len(m.Headers), len(headers), "number of headers")
	for name, value := range headers {
		equal(m.Headers[name], value, "header "+name)
	}
	equal(properties(bare), []any{"", "", bare.DeliveryMode, uint8(0), "", "", "", "", time.Time{}, "", "", ""}, "properties of the bare message")
	equal(len(bare.Headers), 0, "headers of the bare message")
}

func manyChannels(r *run) {
	channels, queues, boxes := []*amqp.Channel{}, []string{}, []*inbox{}
	for range 200 {
		channel := r.channel()
		queue := must1(channel.QueueDeclare(r.name("q"), false, false, true, false, nil)).Name
		channels, queues, boxes = append(channels, channel), append(queues, queue), append(boxes, r.inbox(channel, queue, consume{ack: true}))
	}
	for i, channel := range channels {
		putAll(channel, queues[(i+7)%200], strconv.Itoa(i))
	}
	for i := range 200 {
		box := boxes[(i+7)%200]
		box.take(1)
		equal(box.bodies(), []string{strconv.Itoa(i)}, "messages of a channel")
	}
	for range 50 {
		channel := r.channel()
		queue := must1(channel.QueueDeclare("", false, true, true, false, nil)).Name
		putAll(channel, queue, "x")
		must(channel.Close())
	}
}

func quorumDeliveryLimit(r *run) {
	channel := r.channel()
	dlx, letters := r.deadLetters(channel)
	queue := r.queue(channel, declare{durable: true, args: amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": 2, "x-dead-letter-exchange": dlx}})
	var counts seen[string]
	r.inbox(channel, queue, consume{prefetch: 1, onMessage: func(m message, _ int) {
		count := m.Headers["x-delivery-count"]
		if count == nil {
			count = 0
		}
		counts.add(fmt.Sprint(count, m.Redelivered))
		_ = m.Reject(true)
	}})
	put(channel, "", queue, "poison", amqp.Publishing{DeliveryMode: 2})
	letters.take(1)
	quiet()
	equal(counts.all(), []string{"0 false", "1 true", "2 true"}, "delivery counts and redelivered")
	checkDeath(letters.all()[0], 0, queue, "delivery_limit", 1, "", queue)
	r.untilReady(queue, 0)
}

func consumerPriority(r *run) {
	setup := r.channel()
	queue := r.queue(setup, declare{})
	low := r.inbox(r.channel(), queue, consume{prefetch: 100})
	high := r.inbox(r.channel(), queue, consume{prefetch: 5, args: amqp.Table{"x-priority": 10}})
	putAll(setup, queue, numbers(0, 7)...)
	high.take(5)
	low.take(3)
	quiet()
	equal([][]string{high.bodies(), low.bodies()}, [][]string{numbers(0, 4), numbers(5, 7)}, "high and low")
	must(high.all()[4].Ack(true))
	r.ready(queue)
	quiet()
	putAll(setup, queue, "8", "9")
	high.take(7)
	high.cancel()
	putAll(setup, queue, "10", "11")
	low.take(5)
	equal([][]string{high.bodies()[5:], low.bodies()[3:]}, [][]string{{"8", "9"}, {"10", "11"}}, "high and low after the ack and the cancel")
	must1(setup.QueueDelete(queue, false, false, false))
	until(low.wasCancelled, func() string { return "basic.cancel" })
	check(!high.wasCancelled(), "who cancelled itself hears nothing")
	must1(low.channel.QueueDeclare("", false, false, true, false, nil))
}

func nackMultipleAndRecover(r *run) {
	channel := r.channel()
	queue := r.queue(channel, declare{})
	putAll(channel, queue, numbers(1, 5)...)
	r.untilReady(queue, 5)
	getAll := func(count int) (messages []message) {
		for range count {
			messages = append(messages, getSoon(channel, queue, false))
		}
		return messages
	}
	messages := getAll(5)
	equal([]any{bodies(messages), redelivered(messages)}, []any{numbers(1, 5), []bool{false, false, false, false, false}}, "first time")
	for i, m := range messages {
		equal(m.DeliveryTag, uint64(i+1), "delivery tag")
	}
	must(messages[4].Nack(true, true))
	messages = getAll(5)
	equal([]any{bodies(messages), redelivered(messages)}, []any{numbers(1, 5), []bool{true, true, true, true, true}}, "after nack multiple")
	must(messages[2].Ack(true))
	must(channel.Recover(true))
	r.untilReady(queue, 2)
	messages = getAll(2)
	equal([]any{bodies(messages), redelivered(messages)}, []any{numbers(4, 5), []bool{true, true}}, "after recover")
	must(channel.Ack(0, true))
	must(channel.Close())
	quiet()
	equal(r.ready(queue)[0], 0, "messages left")
}

func queueExpires(r *run) {
	channel := r.channel()
	expires := declare{args: amqp.Table{"x-expires": 1000}}
	renewed, used, unused := r.queue(channel, expires), r.queue(channel, expires), r.queue(channel, expires)
	box := r.inbox(channel, used, consume{autoAck: true})
	putAll(channel, renewed, "stays")
	began, last := time.Now(), time.Now()
	for time.Since(began) < 1600*time.Millisecond {
		quiet()
		found := must1(channel.QueueDeclare(renewed, false, false, false, false, expires.args))
		check(time.Since(last) < 900*time.Millisecond, "this machine is too slow to say")
		last = time.Now()
		equal(found.Messages, 1, "messages of the queue that is redeclared")
	}
	check(r.gone("queue", unused), "the unused queue is there")
	putAll(channel, used, "works")
	box.take(1)
	gone := false
	for i := 0; i < 3 && !gone; i++ {
		time.Sleep(2 * time.Second)
		gone = r.gone("queue", renewed)
	}
	check(gone, "the renewed queue stays for ever")
	check(!r.gone("queue", used), "the queue with a consumer is gone")
}

func unackedRequeued(r *run) {
	setup := r.channel()
	queue, auto := r.queue(setup, declare{}), r.queue(setup, declare{})
	putAll(setup, queue, numbers(0, 5)...)
	putAll(setup, auto, numbers(0, 2)...)
	r.untilReady(queue, 6)
	connection := r.connect()
	first := r.inbox(must1(connection.Channel()), queue, consume{prefetch: 4})
	taken := r.inbox(must1(connection.Channel()), auto, consume{autoAck: true})
	first.take(4)
	taken.take(3)
	must(first.channel.Close())
	r.untilReady(queue, 6)
	second := r.inbox(must1(connection.Channel()), queue, consume{prefetch: 3})
	second.take(3)
	equal([]any{second.bodies(), second.redelivered()}, []any{numbers(0, 2), []bool{true, true, true}}, "after the channel is closed")
	must(second.all()[0].Ack(false))
	second.take(4)
	must(connection.Close())
	r.untilReady(queue, 5)
	messages := r.drain(queue)
	equal([]any{bodies(messages), redelivered(messages)}, []any{numbers(1, 5), []bool{true, true, true, false, false}}, "after the connection is closed")
	equal(r.ready(auto)[0], 0, "auto-acked messages")
}
