// What every scenario needs: connections, fresh names, waiting for conditions, cleaning up, one line of output each.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

type scenario struct {
	number    int
	name      string
	run       func(*run)
	braidOnly bool
	limit     time.Duration
}

// failure and skip are what a scenario panics with.
type (
	failure string
	skip    string
)

func fail(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

func check(condition bool, format string, args ...any) {
	if !condition {
		fail(format, args...)
	}
}

func short(value any) string {
	text := fmt.Sprintf("%#v", value)
	if len(text) > 400 {
		return text[:400] + "..."
	}
	return text
}

func equal(got, want any, what string) {
	if !reflect.DeepEqual(got, want) {
		fail("%s: got %s, want %s", what, short(got), short(want))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func must1[T any](value T, err error) T {
	must(err)
	return value
}

func until(condition func() bool, what func() string) {
	end := time.Now().Add(12 * time.Second)
	for !condition() {
		if time.Now().After(end) {
			fail("waited 12 s for %s", what())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// quiet is long enough for something wrong to show itself.
func quiet() { time.Sleep(250 * time.Millisecond) }

func numbers(from, to int) []string {
	list := []string{}
	for n := from; n <= to; n++ {
		list = append(list, strconv.Itoa(n))
	}
	return list
}

type message struct {
	amqp.Delivery
	at time.Time
}

func (m message) body() string { return string(m.Body) }

// inbox is a consumer that keeps what it gets.
type inbox struct {
	channel   *amqp.Channel
	tag       string
	mutex     sync.Mutex
	messages  []message
	cancelled bool
}

type consume struct {
	prefetch  int
	ack       bool
	autoAck   bool
	exclusive bool
	args      amqp.Table
	onMessage func(m message, seen int)
}

func (r *run) inbox(channel *amqp.Channel, queue string, options consume) *inbox {
	if options.prefetch > 0 {
		must(channel.Qos(options.prefetch, 0, false))
	}
	box := &inbox{channel: channel, tag: r.name("tag")}
	cancels := channel.NotifyCancel(make(chan string, 10))
	deliveries := must1(channel.Consume(queue, box.tag, options.autoAck, options.exclusive, false, false, options.args))
	go func() {
		for tag := range cancels {
			if tag == box.tag {
				box.mutex.Lock()
				box.cancelled = true
				box.mutex.Unlock()
			}
		}
	}()
	go func() {
		for delivery := range deliveries {
			m := message{delivery, time.Now()}
			box.mutex.Lock()
			box.messages = append(box.messages, m)
			seen := len(box.messages)
			box.mutex.Unlock()
			if options.onMessage != nil {
				options.onMessage(m, seen)
			}
			if options.ack {
				_ = m.Ack(false)
			}
		}
	}()
	return box
}

func (b *inbox) all() []message {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return slices.Clone(b.messages)
}

func (b *inbox) wasCancelled() bool {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.cancelled
}

func (b *inbox) bodies() []string    { return bodies(b.all()) }
func (b *inbox) redelivered() []bool { return redelivered(b.all()) }
func (b *inbox) cancel()             { must(b.channel.Cancel(b.tag, false)) }
func (b *inbox) take(n int) []message {
	until(func() bool { return len(b.all()) >= n }, func() string { return fmt.Sprintf("%d messages, have %s", n, short(b.bodies())) })
	return b.all()
}

func bodies(messages []message) []string {
	list := []string{}
	for _, m := range messages {
		list = append(list, m.body())
	}
	return list
}

func redelivered(messages []message) []bool {
	list := []bool{}
	for _, m := range messages {
		list = append(list, m.Redelivered)
	}
	return list
}

// run is one run of one scenario.
type run struct {
	uri, restartCmd string
	braid           bool
	connection      *amqp.Connection
	sockets         map[*amqp.Connection]net.Conn
	connections     []*amqp.Connection
	queues          []string
	exchanges       []string
}

func (r *run) connect() *amqp.Connection { return must1(r.tryConnect()) }

func (r *run) tryConnect() (*amqp.Connection, error) {
	var socket net.Conn
	dial := func(network, address string) (net.Conn, error) {
		var err error
		socket, err = amqp.DefaultDial(10*time.Second)(network, address)
		return socket, err
	}
	connection, err := amqp.DialConfig(r.uri, amqp.Config{Dial: dial, Heartbeat: 10 * time.Second, Locale: "en_US"})
	if err == nil {
		r.connections = append(r.connections, connection)
		r.sockets[connection] = socket
	}
	return connection, err
}

// cut makes the connection go without a word.
func (r *run) cut(connection *amqp.Connection) { must(r.sockets[connection].Close()) }

func (r *run) channel() *amqp.Channel { return must1(r.connection.Channel()) }

func (r *run) elsewhere() *amqp.Channel { return must1(r.connect().Channel()) }

func (r *run) confirming() *amqp.Channel {
	channel := r.channel()
	must(channel.Confirm(false))
	return channel
}

func (r *run) name(kind string) string {
	random := make([]byte, 6)
	must1(rand.Read(random))
	return "interop-go-" + kind + "-" + hex.EncodeToString(random)
}

type declare struct {
	name                           string
	durable, autoDelete, exclusive bool
	args                           amqp.Table
}

func (r *run) queue(channel *amqp.Channel, d declare) string {
	if d.name == "" {
		d.name = r.name("q")
	}
	queue := must1(channel.QueueDeclare(d.name, d.durable, d.autoDelete, d.exclusive, false, d.args))
	r.queues = append(r.queues, queue.Name)
	return queue.Name
}

func (r *run) exchange(channel *amqp.Channel, kind string, d declare) string {
	if d.name == "" {
		d.name = r.name("x")
	}
	must(channel.ExchangeDeclare(d.name, kind, d.durable, d.autoDelete, false, false, d.args))
	r.exchanges = append(r.exchanges, d.name)
	return d.name
}

// pluginExchange declares an exchange of a type that RabbitMQ has by a plugin only.
func (r *run) pluginExchange(kind string, d declare) string {
	if !r.braid {
		channel, probe := r.elsewhere(), r.name("probe")
		err := channel.ExchangeDeclare(probe, kind, false, false, false, false, d.args)
		if err == nil {
			must(channel.ExchangeDelete(probe, false, false))
		} else {
			panic(skip("peer has no exchange type " + kind))
		}
	}
	return r.exchange(r.channel(), kind, d)
}

// deadLetters returns a dead-letter exchange and who listens at it.
func (r *run) deadLetters(channel *amqp.Channel) (string, *inbox) {
	exchange := r.exchange(channel, "fanout", declare{})
	queue := r.queue(channel, declare{})
	r.bind(channel, queue, exchange, "")
	return exchange, r.inbox(r.channel(), queue, consume{autoAck: true})
}

func (r *run) bind(channel *amqp.Channel, queue, exchange, key string) {
	must(channel.QueueBind(queue, key, exchange, false, nil))
}

func put(channel *amqp.Channel, exchange, key, body string, properties amqp.Publishing) {
	properties.Body = []byte(body)
	must(channel.Publish(exchange, key, false, false, properties))
}

func putAll(channel *amqp.Channel, queue string, bodies ...string) {
	for _, body := range bodies {
		put(channel, "", queue, body, amqp.Publishing{})
	}
}

// confirmed publishes and says whether it was acked.
func confirmed(channel *amqp.Channel, exchange, key string, mandatory bool, properties amqp.Publishing) bool {
	confirm := must1(channel.PublishWithDeferredConfirm(exchange, key, mandatory, false, properties))
	select {
	case <-confirm.Done():
		return confirm.Acked()
	case <-time.After(12 * time.Second):
		fail("no confirm for 12 s")
		return false
	}
}

// ready returns messages ready and consumers, as a passive declare says.
func (r *run) ready(queue string) [2]int {
	channel := r.channel()
	found := must1(channel.QueueDeclarePassive(queue, false, false, false, false, nil))
	must(channel.Close())
	return [2]int{found.Messages, found.Consumers}
}

func (r *run) untilReady(queue string, count int) {
	until(func() bool { return r.ready(queue)[0] == count }, func() string { return fmt.Sprintf("%d ready in queue, has %d", count, r.ready(queue)[0]) })
}

func get(channel *amqp.Channel, queue string, autoAck bool) (message, bool) {
	delivery, ok, err := channel.Get(queue, autoAck)
	must(err)
	return message{delivery, time.Now()}, ok
}

func getSoon(channel *amqp.Channel, queue string, autoAck bool) (m message) {
	until(func() (ok bool) { m, ok = get(channel, queue, autoAck); return ok }, func() string { return "a message to get" })
	return m
}

func (r *run) drain(queue string) (messages []message) {
	channel := r.channel()
	for {
		m, ok := get(channel, queue, true)
		if !ok {
			must(channel.Close())
			return messages
		}
		messages = append(messages, m)
	}
}

func (r *run) gone(kind, name string) bool {
	channel := r.channel()
	var err error
	if kind == "queue" {
		_, err = channel.QueueDeclarePassive(name, false, false, false, false, nil)
	} else {
		err = channel.ExchangeDeclarePassive(name, "direct", false, false, false, false, nil)
	}
	if err == nil {
		must(channel.Close())
		return false
	}
	var refusal *amqp.Error
	check(errors.As(err, &refusal) && refusal.Code == 404, "passive declare of %s: %v", kind, err)
	return true
}

// refused: the action must close its channel with this code and text.
func refused(channel *amqp.Channel, code int, text, what string, action func(*amqp.Channel) error) {
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	err := action(channel)
	var refusal *amqp.Error
	select {
	case refusal = <-closed:
	case <-time.After(5 * time.Second):
		fail("%s: was not refused", what)
	}
	if refusal == nil {
		check(errors.As(err, &refusal), "%s: closed without an error", what)
	}
	equal([]any{refusal.Code, refusal.Reason}, []any{code, text}, what)
}

func (r *run) restart() {
	command := exec.Command("sh", "-c", r.restartCmd)
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	must(command.Run())
	end := time.Now().Add(20 * time.Second)
	for {
		connection, err := r.tryConnect()
		if err == nil {
			r.connection = connection
			return
		}
		if time.Now().After(end) {
			panic(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (r *run) clean() {
	for _, connection := range r.connections {
		_ = connection.Close()
	}
	connection := must1(amqp.Dial(r.uri))
	defer connection.Close()
	attempt := func(action func(*amqp.Channel) error) {
		channel := must1(connection.Channel())
		if action(channel) == nil {
			_ = channel.Close()
		}
	}
	for _, name := range r.queues {
		attempt(func(c *amqp.Channel) error { _, err := c.QueueDelete(name, false, false, false); return err })
	}
	for _, name := range r.exchanges {
		attempt(func(c *amqp.Channel) error { return c.ExchangeDelete(name, false, false) })
	}
}

// within runs what panics with a reason, at most so long, and returns the reason.
func within(limit time.Duration, action func()) (reason any) {
	done := make(chan any, 1)
	go func() {
		defer func() {
			caught := recover()
			if _, skipped := caught.(skip); caught != nil && !skipped {
				fmt.Fprintf(os.Stderr, "%v\n%s", caught, debug.Stack())
			}
			done <- caught
		}()
		action()
	}()
	select {
	case reason = <-done:
		return reason
	case <-time.After(limit):
		return failure("took longer than its limit")
	}
}

func main() {
	uri := os.Getenv("BRAID_AMQP_URI")
	if uri == "" {
		uri = "amqp://guest:guest@127.0.0.1:5672/"
	}
	flag.StringVar(&uri, "uri", uri, "broker")
	list := flag.Bool("list", false, "list the scenarios")
	peer := flag.String("peer", "auto", "auto, braid or rabbitmq")
	restartCmd := flag.String("restart-cmd", "", "command that restarts the broker")
	var only []string
	flag.Func("only", "scenario by number or name", func(value string) error {
		only = append(only, strings.Split(value, ",")...)
		return nil
	})
	flag.Parse()
	chosen := []scenario{}
	for _, s := range scenarios {
		if len(only) == 0 || slices.ContainsFunc(only, func(o string) bool { n, err := strconv.Atoi(o); return o == s.name || err == nil && n == s.number }) {
			chosen = append(chosen, s)
		}
	}
	if *list {
		for _, s := range chosen {
			fmt.Printf("%02d %s\n", s.number, s.name)
		}
		return
	}
	if len(chosen) == 0 {
		fmt.Fprintln(os.Stderr, "no such scenario")
		os.Exit(2)
	}
	if *peer == "auto" {
		connection, err := amqp.Dial(uri)
		if err != nil {
			fmt.Fprintln(os.Stderr, "cannot connect:", err)
			os.Exit(2)
		}
		*peer = "rabbitmq"
		if _, ok := connection.Properties["braid"]; ok {
			*peer = "braid"
		}
		_ = connection.Close()
	}
	failed := false
	for _, s := range chosen {
		label := fmt.Sprintf("%02d %s", s.number, s.name)
		if s.braidOnly && *peer == "rabbitmq" {
			fmt.Printf("skip %s: Braid only\n", label)
			continue
		}
		if s.limit == 0 {
			s.limit = 20 * time.Second
		}
		began := time.Now()
		r := &run{uri: uri, restartCmd: *restartCmd, braid: *peer == "braid", sockets: map[*amqp.Connection]net.Conn{}}
		reason := within(s.limit, func() { r.connection = r.connect(); s.run(r) })
		late := within(10*time.Second, r.clean)
		if reason == nil {
			reason = late
		}
		switch why := reason.(type) {
		case nil:
			fmt.Println("ok", label)
		case skip:
			fmt.Printf("skip %s: %s\n", label, why)
		default:
			failed = true
			fmt.Printf("not ok %s: %s\n", label, strings.ReplaceAll(fmt.Sprint(why), "\n", " "))
		}
		fmt.Fprintf(os.Stderr, "   %.2f s\n", time.Since(began).Seconds())
	}
	if failed {
		os.Exit(1)
	}
}
