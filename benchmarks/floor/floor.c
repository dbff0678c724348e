/* The floor: the benchmark's job for its own schema, as directly as it can be done, and nothing else.
 *
 *   floor convert                                       records on stdin, each after its length (4 bytes, little end
 *                                                       first); one line of JSON each on stdout
 *   floor run BROKER TOPIC GROUP HOST PORT PATH LOG     until SIGTERM
 *
 * `run` takes up to 1,000 records from librdkafka, converts them (event.h), sends them in one call and waits for its
 * answer, appends their keys to LOG, and once a second syncs LOG and commits. No event is an object here, nothing is
 * looked up, and nothing that can go wrong is put right: it ends the program. What pinstream takes above this is
 * the price of everything else it does.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "event.h"
#include "rdkafka.h"

enum {
  BATCH_EVENTS = 1000,
  BATCH_BYTES = 4 << 20, /* what pinstream sends in one call at the most, by default */
  HEAD_BYTES = 1024,
  LINE_BYTES = KEY_BYTES + 4, /* of the log: a key and when it was delivered */
  MAX_PARTITIONS = 4096,
  FILL_MS = 100, /* the longest that a batch waits for its thousandth event */
  COMMIT_SECONDS = 1,
};

static volatile sig_atomic_t stopping;

static void stop(int signal) {
  (void)signal;
  stopping = 1;
}

static void fail_errno(const char *what) {
  fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
  exit(3);
}

/* ---- one record ---- */

static uint8_t *convert_record(const void *record, size_t size, uint8_t *out, uint8_t *key, int64_t now) {
  static uint8_t copy[MAX_RECORD + sizeof(Bytes)];
  static Event event;
  EXPECT(size <= MAX_RECORD);
  memcpy(copy, record, size);
  memset(copy + size, 0, sizeof(Bytes));
  decode(&event, copy, size);
  return convert(&event, out, key, now);
}

static void convert_stdin(void) {
  static uint8_t record[MAX_RECORD], json[MAX_EVENT], key[KEY_BYTES];
  uint32_t size;
  while (fread(&size, sizeof size, 1, stdin) == 1) {
    EXPECT(size <= MAX_RECORD && fread(record, 1, size, stdin) == size);
    uint8_t *end = convert_record(record, size, json, key, time(NULL));
    *end++ = '\n';
    fwrite(json, 1, end - json, stdout);
  }
}

/* ---- the API ---- */

typedef struct {
  const char *host, *port, *path;
  int connection, log;
  uint8_t *buffer, *body, *out; /* `body` begins HEAD_BYTES into the buffer: the head is written before it */
  uint8_t lines[BATCH_EVENTS][LINE_BYTES];
  int events;
} Batch;

static int connect_to(const char *host, const char *port) {
  int connection = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1) fail("HOST is not an IPv4 address");
  if (connect(connection, (struct sockaddr *)&address, sizeof address)) fail_errno("connect");
  setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return connection;
}

static void write_all(int file, const void *from, size_t size) {
  for (const char *at = from; size;) {
    ssize_t written = write(file, at, size);
    if (written < 0) fail_errno("write");
    at += written, size -= written;
  }
}

/* Reads one answer; all of the batch must have been processed. */
static void read_answer(int connection, int events) {
  static char answer[1 << 20];
  static const char counted[] = "\"num_events_processed\":";
  size_t have = 0, whole = 0;
  while (!whole || have < whole) {
    ssize_t got = read(connection, answer + have, sizeof answer - 1 - have);
    if (got <= 0) fail("the API closed the connection, or its answer is too long");
    have += got;
    answer[have] = 0;
    char *head_end = whole ? NULL : strstr(answer, "\r\n\r\n");
    if (!head_end) continue;
    *head_end = 0;
    char *length = strcasestr(answer, "\r\ncontent-length:");
    if (!length || strncmp(answer, "HTTP/1.1 200 ", 13)) fail("not an answer of status 200 with a length");
    whole = head_end + 4 - answer + atol(length + 17);
    *head_end = '\r';
  }
  char *processed = strstr(answer, counted);
  if (!processed || atoi(processed + sizeof counted - 1) != events) fail("not all events were processed");
}

static void begin_batch(Batch *b) {
  b->out = b->body;
  b->events = 0;
  PUT(b->out, "{\"data\":[");
}

static void deliver_batch(Batch *b) {
  if (!b->events) return;
  b->out[-1] = ']';
  PUT(b->out, "}");
  char head[HEAD_BYTES];
  int size = snprintf(head, sizeof head,
                      "POST %s HTTP/1.1\r\nHost: %s:%s\r\nAuthorization: Bearer benchmark\r\n"
                      "Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: %zu\r\n\r\n",
                      b->path, b->host, b->port, (size_t)(b->out - b->body));
  EXPECT(size < (int)sizeof head);
  memcpy(b->body - size, head, size);
  write_all(b->connection, b->body - size, size + (b->out - b->body));
  read_answer(b->connection, b->events);
  write_all(b->log, b->lines, (size_t)b->events * LINE_BYTES);
  begin_batch(b);
}

static void add_to_batch(Batch *b, const rd_kafka_message_t *message, uint32_t now) {
  uint8_t *line = b->lines[b->events++];
  b->out = convert_record(message->payload, message->len, b->out, line, now);
  *b->out++ = ',';
  memcpy(line + KEY_BYTES, &now, sizeof now);
  if (b->events == BATCH_EVENTS || b->out - b->body > BATCH_BYTES - MAX_EVENT) deliver_batch(b);
}

/* ---- Kafka ---- */

typedef struct {
  rd_kafka_t *client;
  rd_kafka_queue_t *queue;
  const char *topic;
  int64_t next[MAX_PARTITIONS]; /* offset after the last one delivered; 0: none yet */
} Consumer;

static void subscribe(Consumer *c, const char *broker, const char *topic, const char *group) {
  const char *settings[][2] = {
      {"bootstrap.servers", broker},
      {"group.id", group},
      {"auto.offset.reset", "earliest"},
      {"enable.auto.commit", "false"},
      {"enable.auto.offset.store", "false"},
      {"log_level", "4"},
      /* pinstream's own (consumer/adapters/kafka): the same reading ahead */
      {"partition.assignment.strategy", "cooperative-sticky"},
      {"isolation.level", "read_committed"},
      {"check.crcs", "true"},
      {"queued.max.messages.kbytes", "16384"},
      {"queued.min.messages", "2000"},
      {"fetch.wait.max.ms", "100"},
      {"fetch.queue.backoff.ms", "10"},
  };
  char error[512];
  rd_kafka_conf_t *conf = rd_kafka_conf_new();
  for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
    if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], error, sizeof error) != RD_KAFKA_CONF_OK) fail(error);
  c->topic = topic;
  c->client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof error);
  if (!c->client) fail(error);
  rd_kafka_poll_set_consumer(c->client);
  c->queue = rd_kafka_queue_get_consumer(c->client);
  rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
  rd_kafka_topic_partition_list_add(topics, topic, -1);
  int problem = rd_kafka_subscribe(c->client, topics);
  if (problem) fail(rd_kafka_err2str(problem));
  rd_kafka_topic_partition_list_destroy(topics);
}

static void commit(Consumer *c, int log, bool wait) {
  /* First the keys: a crash in between finds them again; the other way round it would have forgotten them. */
  if (fdatasync(log)) fail_errno("fdatasync");
  rd_kafka_topic_partition_list_t *offsets = rd_kafka_topic_partition_list_new(8);
  for (int partition = 0; partition < MAX_PARTITIONS; partition++)
    if (c->next[partition])
      rd_kafka_topic_partition_list_add(offsets, c->topic, partition)->offset = c->next[partition];
  int problem = offsets->cnt ? rd_kafka_commit(c->client, offsets, !wait) : 0;
  if (problem) fail(rd_kafka_err2str(problem));
  rd_kafka_topic_partition_list_destroy(offsets);
}

static void run(char **argument) {
  static Consumer consumer;
  static Batch batch;
  static rd_kafka_message_t *messages[BATCH_EVENTS];
  batch = (Batch){.host = argument[3], .port = argument[4], .path = argument[5]};
  batch.connection = connect_to(batch.host, batch.port);
  batch.log = open(argument[6], O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (batch.log < 0) fail_errno(argument[6]);
  batch.buffer = malloc(HEAD_BYTES + BATCH_BYTES + MAX_EVENT);
  if (!batch.buffer) fail("no memory");
  batch.body = batch.buffer + HEAD_BYTES;
  subscribe(&consumer, argument[0], argument[1], argument[2]);
  begin_batch(&batch);
  for (time_t committed = time(NULL); !stopping;) {
    ptrdiff_t count = rd_kafka_consume_batch_queue(consumer.queue, FILL_MS, messages, BATCH_EVENTS);
    time_t now = time(NULL);
    for (ptrdiff_t i = 0; i < count; i++) {
      rd_kafka_message_t *message = messages[i];
      if (message->err) fail(rd_kafka_err2str(message->err));
      add_to_batch(&batch, message, now);
      EXPECT(message->partition < MAX_PARTITIONS);
      consumer.next[message->partition] = message->offset + 1;
      rd_kafka_message_destroy(message);
    }
    deliver_batch(&batch);
    if (now - committed < COMMIT_SECONDS) continue;
    commit(&consumer, batch.log, false);
    committed = now;
  }
  commit(&consumer, batch.log, true);
  rd_kafka_queue_destroy(consumer.queue);
  rd_kafka_consumer_close(consumer.client);
  rd_kafka_destroy(consumer.client);
}

int main(int count, char **argument) {
  learn_countries();
  if (count == 2 && !strcmp(argument[1], "convert")) {
    convert_stdin();
    return 0;
  }
  if (count != 9 || strcmp(argument[1], "run")) {
    fprintf(stderr, "usage: floor convert | floor run BROKER TOPIC GROUP HOST PORT PATH LOG\n");
    return 2;
  }
  signal(SIGTERM, stop);
  signal(SIGPIPE, SIG_IGN);
  run(argument + 2);
  return 0;
}
