// The six classic tutorial programs, each in one self-checking run. usage: tutorials URI NAME
package main

import (
	"fmt"
	"os"
	"reflect"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func must1[T any](value T, err error) T {
	must(err)
	return value
}

func same(got, want any) {
	if !reflect.DeepEqual(got, want) {
		panic(fmt.Sprintf("got %v, want %v", got, want))
	}
}

var (
	channel *amqp.Channel
	run     = strconv.FormatInt(time.Now().UnixNano(), 36)
)

func publish(exchange, key, body string) {
	must(channel.Publish(exchange, key, false, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(body)}))
}

func receive(queue string, count int, onMessage func(amqp.Delivery)) (got []string) {
	deliveries := must1(channel.Consume(queue, queue, false, false, false, false, nil))
	for len(got) < count {
		select {
		case delivery := <-deliveries:
			got = append(got, string(delivery.Body))
			if onMessage != nil {
				onMessage(delivery)
			}
			must(delivery.Ack(false))
		case <-time.After(10 * time.Second):
			panic(fmt.Sprintf("waited 10 s, have %v", got))
		}
	}
	must(channel.Cancel(queue, false))
	return got
}

func queue(name string, durable, autoDelete, exclusive bool) string {
	return must1(channel.QueueDeclare(name, durable, autoDelete, exclusive, false, nil)).Name
}

func exchange(kind string) string {
	must(channel.ExchangeDeclare(kind+"-"+run, kind, false, false, false, false, nil))
	return kind + "-" + run
}

func listen(exchange string, keys ...string) string {
	name := queue("", false, false, true)
	for _, key := range keys {
		must(channel.QueueBind(name, key, exchange, false, nil))
	}
	return name
}

var tutorials = map[string]func(){
	"work_queue": func() {
		name := queue("tasks-"+run, true, false, false)
		must(channel.Qos(1, 0, false))
		tasks := []string{"task 0", "task 1", "task 2", "task 3", "task 4"}
		for _, task := range tasks {
			publish("", name, task)
		}
		same(receive(name, 5, nil), tasks)
		must1(channel.QueueDelete(name, false, false, false))
	},
	"publish_subscribe": func() {
		logs := exchange("fanout")
		one, two := listen(logs, ""), listen(logs, "")
		publish(logs, "", "hello")
		same(receive(one, 1, nil), []string{"hello"})
		same(receive(two, 1, nil), []string{"hello"})
		must(channel.ExchangeDelete(logs, false, false))
	},
	"routing": func() {
		logs := exchange("direct")
		errors, everything := listen(logs, "error"), listen(logs, "info", "warning", "error")
		for _, key := range []string{"info", "error", "warning", "debug"} {
			publish(logs, key, key)
		}
		same(receive(everything, 3, nil), []string{"info", "error", "warning"})
		same(receive(errors, 1, nil), []string{"error"})
		must(channel.ExchangeDelete(logs, false, false))
	},
	"topics": func() {
		logs := exchange("topic")
		kernel, critical := listen(logs, "kern.*"), listen(logs, "*.critical", "all.#")
		for _, key := range []string{"kern.info", "kern.critical", "cron.critical", "all.of.it", "cron.info"} {
			publish(logs, key, key)
		}
		same(receive(kernel, 2, nil), []string{"kern.info", "kern.critical"})
		same(receive(critical, 3, nil), []string{"kern.critical", "cron.critical", "all.of.it"})
		must(channel.ExchangeDelete(logs, false, false))
	},
	"rpc": func() {
		requests, replies := queue("rpc-"+run, false, true, false), queue("", false, false, true)
		must(channel.Publish("", requests, false, false, amqp.Publishing{ReplyTo: replies, CorrelationId: run, Body: []byte("30")}))
		receive(requests, 1, func(d amqp.Delivery) {
			a, b := 0, 1
			for range must1(strconv.Atoi(string(d.Body))) {
				a, b = b, a+b
			}
			must(channel.Publish("", d.ReplyTo, false, false, amqp.Publishing{CorrelationId: d.CorrelationId, Body: []byte(strconv.Itoa(a))}))
		})
		same(receive(replies, 1, func(d amqp.Delivery) { same(d.CorrelationId, run) }), []string{"832040"})
	},
	"confirms": func() {
		must(channel.Confirm(false))
		name := queue("", false, false, true)
		for n := range 50 {
			confirm := must1(channel.PublishWithDeferredConfirm("", name, true, false, amqp.Publishing{Body: []byte(strconv.Itoa(n))}))
			same(confirm.Wait(), true)
		}
		same(must1(channel.QueueDeclarePassive(name, false, false, false, false, nil)).Messages, 50)
	},
}

func main() {
	connection := must1(amqp.Dial(os.Args[1]))
	channel = must1(connection.Channel())
	tutorials[os.Args[2]]()
	must(connection.Close())
}
