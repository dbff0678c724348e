// Benthos, the engine of Redpanda Connect, for the benchmark: the same job as config.yaml says it.
//
// Benthos itself (MIT) brings the pipeline, the mapping language with its hashes, batches and the HTTP output. Its
// Kafka input and its Avro decoder are parts of Redpanda Connect, which cannot be had here; these two stand in for
// them and are built on what Redpanda Connect builds on: franz-go, and hamba/avro.
package main

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/hamba/avro/v2"
	_ "github.com/redpanda-data/benthos/v4/public/components/io"
	_ "github.com/redpanda-data/benthos/v4/public/components/pure"
	"github.com/redpanda-data/benthos/v4/public/service"
	"github.com/twmb/franz-go/pkg/kgo"
)

// What precedes the Avro in single-object encoding: two bytes of marker, eight of fingerprint.
const singleObjectHead = 10

const batchRecords = 1000

func main() {
	registerInput()
	registerDecoder()
	service.RunCLI(context.Background())
}

func registerInput() {
	spec := service.NewConfigSpec().
		Field(service.NewStringField("broker")).
		Field(service.NewStringField("topic")).
		Field(service.NewStringField("group"))
	must(service.RegisterBatchInput("kafka", spec, func(conf *service.ParsedConfig, _ *service.Resources) (service.BatchInput, error) {
		made := &input{}
		for name, into := range map[string]*string{"broker": &made.broker, "topic": &made.topic, "group": &made.group} {
			value, err := conf.FieldString(name)
			if err != nil {
				return nil, err
			}
			*into = value
		}
		return service.AutoRetryNacksBatched(made), nil
	}))
}

// input reads a topic in a consumer group. What is committed is everything up to the first batch not yet acknowledged.
type input struct {
	broker, topic, group string
	client               *kgo.Client

	lock    sync.Mutex
	pending []*fetched
}

type fetched struct {
	records []*kgo.Record
	done    bool
}

func (in *input) Connect(context.Context) (err error) {
	in.client, err = kgo.NewClient(
		kgo.SeedBrokers(in.broker),
		kgo.ConsumerGroup(in.group),
		kgo.ConsumeTopics(in.topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.AutoCommitMarks(),
	)
	return err
}

func (in *input) ReadBatch(ctx context.Context) (service.MessageBatch, service.AckFunc, error) {
	fetches := in.client.PollRecords(ctx, batchRecords)
	if fetches.IsClientClosed() {
		return nil, nil, service.ErrNotConnected
	}
	if err := fetches.Err(); err != nil {
		return nil, nil, err
	}
	records := fetches.Records()
	batch := make(service.MessageBatch, len(records))
	for at, record := range records {
		batch[at] = service.NewMessage(record.Value)
	}
	one := &fetched{records: records}
	in.lock.Lock()
	in.pending = append(in.pending, one)
	in.lock.Unlock()
	return batch, func(_ context.Context, err error) error {
		if err == nil {
			in.acknowledge(one)
		}
		return nil
	}, nil
}

func (in *input) acknowledge(one *fetched) {
	in.lock.Lock()
	defer in.lock.Unlock()
	one.done = true
	for len(in.pending) > 0 && in.pending[0].done {
		in.client.MarkCommitRecords(in.pending[0].records...)
		in.pending = in.pending[1:]
	}
}

func (in *input) Close(ctx context.Context) error {
	if in.client != nil {
		_ = in.client.CommitMarkedOffsets(ctx)
		in.client.Close()
	}
	return nil
}

func registerDecoder() {
	spec := service.NewConfigSpec().Field(service.NewStringField("schema_path"))
	must(service.RegisterProcessor("avro_single_object", spec, func(conf *service.ParsedConfig, _ *service.Resources) (service.Processor, error) {
		path, err := conf.FieldString("schema_path")
		if err != nil {
			return nil, err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		schema, err := avro.Parse(string(text))
		if err != nil {
			return nil, err
		}
		return &decoder{schema}, nil
	}))
}

type decoder struct{ schema avro.Schema }

func (d *decoder) Process(_ context.Context, message *service.Message) (service.MessageBatch, error) {
	data, err := message.AsBytes()
	if err != nil {
		return nil, err
	}
	if len(data) < singleObjectHead {
		return nil, errors.New("no single-object encoding")
	}
	var event map[string]any
	if err := avro.Unmarshal(d.schema, data[singleObjectHead:], &event); err != nil {
		return nil, err
	}
	message.SetStructuredMut(event)
	return service.MessageBatch{message}, nil
}

func (d *decoder) Close(context.Context) error { return nil }

func must(err error) {
	if err != nil {
		panic(err)
	}
}
