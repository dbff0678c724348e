/* One record of the benchmark to one event of the API: what pinstream's default mapping makes of it, byte for byte.
 *
 * For the benchmark's schema (schemas/commerce_event.avsc) and for what benchmarks/events.py puts into it, and for
 * nothing else: a record that is in any way unusual ends the program (`EXPECT`). So the rules of a field are here only
 * as far as such a record needs them, and this is what the job costs where nothing else is asked for.
 *
 * Texts are worked on 64 bytes at a time, beyond their ends: a record is copied first, with zeros behind it.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "sha256.h"

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define EXPECT(x)                                                                \
  do {                                                                          \
    if (!LIKELY(x)) fail("a record that the floor is not made for: " #x);      \
  } while (0)
#define INLINE static inline __attribute__((always_inline))

enum {
  MAX_RECORD = 1 << 16, /* bytes */
  MAX_ITEMS = 2048,
  MAX_EVENT = 8 * MAX_RECORD, /* bytes of JSON: an item's texts are written twice, with some 80 bytes around them */
  KEY_BYTES = 16,
  HASHED = 10,
};

static void fail(const char *why) {
  fprintf(stderr, "floor: %s\n", why);
  exit(3);
}

/* 64 bytes at once: loops over all of them, of which the compiler makes what the processor has. */
typedef struct {
  uint8_t at[64];
} Bytes;

typedef struct {
  const uint8_t *at; /* NULL: there is none */
  unsigned size;
} Text;

typedef struct {
  Text sku, name, category, brand, price;
  int64_t quantity;
} Item;

typedef struct {
  Text event_id, event_type, page_url, search_query, language;
  Text email, phone, external_id, advertising_id, first_name, last_name, gender, birth_date, city, state, postal_code,
      country, ip_address, user_agent, click_id, partner_id;
  Text order_id, currency, total, opt_out_type, account;
  int64_t occurred_at;
  int channel, opt_out, items;
  Item item[MAX_ITEMS];
} Event;

/* ---- Avro ---- */

typedef struct {
  const uint8_t *at, *end;
} Reader;

INLINE int64_t read_long(Reader *r) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    EXPECT(r->at < r->end);
    uint8_t byte = *r->at++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return (int64_t)(value >> 1) ^ -(int64_t)(value & 1);
  }
  fail("a number of more than 64 bits");
  return 0;
}

INLINE Text read_text(Reader *r) {
  int64_t size = read_long(r);
  EXPECT(size >= 0 && size <= r->end - r->at);
  Text text = {r->at, size};
  r->at += size;
  return text;
}

INLINE Text read_optional(Reader *r) {
  int64_t branch = read_long(r);
  if (branch == 0) return (Text){0};
  EXPECT(branch == 1);
  return read_text(r);
}

/* How many are in the next block of an array; none: it is at its end. */
INLINE int64_t read_block(Reader *r) {
  int64_t count = read_long(r);
  if (count >= 0) return count;
  read_long(r); /* a negative count is followed by the block's size in bytes */
  return -count;
}

/* Of an array of texts, which has one at the most. */
INLINE Text read_only(Reader *r) {
  Text only = {0};
  for (int64_t count; (count = read_block(r));) {
    EXPECT(count == 1 && !only.at);
    only = read_text(r);
  }
  return only;
}

static void decode(Event *e, const uint8_t *record, size_t size) {
  EXPECT(size > 10 && record[0] == 0xc3 && record[1] == 0x01); /* single-object encoding: mark and fingerprint */
  Reader reader = {record + 10, record + size}, *r = &reader;
  e->event_id = read_text(r);
  e->event_type = read_text(r);
  e->occurred_at = read_long(r);
  e->channel = read_long(r);
  e->page_url = read_optional(r);
  e->search_query = read_optional(r);
  e->language = read_optional(r);
  e->email = read_only(r);
  e->phone = read_only(r);
  e->external_id = read_only(r);
  e->advertising_id = read_only(r);
  e->first_name = read_optional(r);
  e->last_name = read_optional(r);
  e->gender = read_optional(r);
  e->birth_date = read_optional(r);
  e->city = read_optional(r);
  e->state = read_optional(r);
  e->postal_code = read_optional(r);
  e->country = read_optional(r);
  e->ip_address = read_optional(r);
  e->user_agent = read_optional(r);
  e->click_id = read_optional(r);
  e->partner_id = read_optional(r);
  EXPECT(read_long(r) == 1);
  e->order_id = read_optional(r);
  e->currency = read_optional(r);
  e->total = read_optional(r);
  e->items = 0;
  for (int64_t count; (count = read_block(r));)
    while (count--) {
      EXPECT(e->items < MAX_ITEMS);
      Item *item = e->item + e->items++;
      item->sku = read_optional(r);
      item->name = read_optional(r);
      item->category = read_optional(r);
      item->brand = read_optional(r);
      item->price = read_optional(r);
      item->quantity = read_long(r);
    }
  EXPECT(read_long(r) == 0); /* app */
  EXPECT(read_long(r) == 0); /* device */
  EXPECT(r->at < r->end);
  e->opt_out = *r->at++;
  e->opt_out_type = read_optional(r);
  e->account = read_optional(r);
  EXPECT(r->at == r->end);
  EXPECT(e->event_type.size == 15 && !memcmp(e->event_type.at, "order_completed", 15) && e->channel == 1);
  EXPECT(!e->search_query.at && !e->advertising_id.at && !e->birth_date.at && !e->click_id.at && !e->partner_id.at);
  EXPECT(!e->opt_out_type.at && !e->account.at && e->page_url.size && e->language.size == 2 && e->order_id.size);
}

/* ---- texts ---- */

/* The first 64 bytes of a text, zero beyond its end. */
INLINE Bytes load(Text text) {
  Bytes bytes;
  memcpy(bytes.at, text.at, sizeof bytes);
  for (unsigned i = 0; i < 64; i++) bytes.at[i] = i < text.size ? bytes.at[i] : 0;
  return bytes;
}

/* Whether `condition` holds for any `byte` of the first `count` ones. */
#define ANY(bytes, count, condition)                   \
  ({                                                   \
    uint8_t found = 0, upto = count;                   \
    for (uint8_t i = 0; i < 64; i++) {                 \
      uint8_t byte = (bytes).at[i];                    \
      found |= (uint8_t)((condition) & (i < upto));    \
    }                                                  \
    found;                                             \
  })

INLINE Bytes lower(Bytes bytes) {
  for (int i = 0; i < 64; i++) bytes.at[i] += (uint8_t)(bytes.at[i] - 'A') < 26 ? 32 : 0;
  return bytes;
}

INLINE bool blank(uint8_t byte) { return byte <= ' '; }

INLINE bool letter(uint8_t byte) { return (uint8_t)((byte | 32) - 'a') < 26; }

INLINE bool digit(uint8_t byte) { return (uint8_t)(byte - '0') < 10; }

INLINE Text trimmed(Text text) {
  while (text.size && blank(text.at[0])) text.at++, text.size--;
  while (text.size && blank(text.at[text.size - 1])) text.size--;
  return text;
}

/* A text of one block, which is plain ASCII (another letter has a lower case of its own). */
INLINE Bytes canonical_text(Text text) {
  EXPECT(text.size && text.size <= MAX_SHA256);
  Bytes bytes = load(text);
  EXPECT(!ANY(bytes, 64, byte >= 128));
  return bytes;
}

INLINE bool amount(Text text) {
  unsigned points = 0;
  for (unsigned i = 0; i < text.size; i++)
    if (text.at[i] == '.')
      points++;
    else if (!digit(text.at[i]))
      return false;
  return text.size && points < 2 && digit(text.at[0]) && digit(text.at[text.size - 1]) &&
         (text.at[0] != '0' || text.size == 1 || text.at[1] == '.');
}

INLINE bool ipv4(Text text) {
  unsigned i = 0;
  for (int part = 0; part < 4; part++) {
    unsigned value = 0, digits = 0;
    for (; i < text.size && digit(text.at[i]); i++, digits++) value = 10 * value + text.at[i] - '0';
    if (!digits || digits > 3 || value > 255) return false;
    if (part < 3 && (i >= text.size || text.at[i++] != '.')) return false;
  }
  return i == text.size;
}

/* ---- fields that are hashed: each normalised into a block of its own ---- */

typedef struct {
  _Alignas(64) uint8_t block[HASHED + 2][64]; /* and one for the key; two at a time */
  uint8_t digest[HASHED + 2][32];
  uint8_t field[HASHED + 2];
  int count;
} Hashes;

enum { EM, PH, GE, LN, FN, CT, ST, ZP, COUNTRY, EXTERNAL_ID };

/* In the order in which they are written. */
static const char FIELD[HASHED][24] = {"\"em\":[\"", "\"ph\":[\"", "\"ge\":[\"", "\"ln\":[\"",      "\"fn\":[\"",
                                       "\"ct\":[\"", "\"st\":[\"", "\"zp\":[\"", "\"country\":[\"", "\"external_id\":[\""};
static const uint8_t FIELD_SIZE[HASHED] = {7, 7, 7, 7, 7, 7, 7, 7, 12, 16};

static const char COUNTRIES[] =
    "ADAEAFAGAIALAMAOAQARASATAUAWAXAZBABBBDBEBFBGBHBIBJBLBMBNBOBQBRBSBTBVBWBYBZCACCCDCFCGCHCICKCLCMCNCOCRCUCVCWCXCYCZ"
    "DEDJDKDMDODZECEEEGEHERESETFIFJFKFMFOFRGAGBGDGEGFGGGHGIGLGMGNGPGQGRGSGTGUGWGYHKHMHNHRHTHUIDIEILIMINIOIQIRISITJEJM"
    "JOJPKEKGKHKIKMKNKPKRKWKYKZLALBLCLILKLRLSLTLULVLYMAMCMDMEMFMGMHMKMLMMMNMOMPMQMRMSMTMUMVMWMXMYMZNANCNENFNGNINLNONP"
    "NRNUNZOMPAPEPFPGPHPKPLPMPNPRPSPTPWPYQARERORSRURWSASBSCSDSESGSHSISJSKSLSMSNSOSRSSSTSVSXSYSZTCTDTFTGTHTJTKTLTMTNTO"
    "TRTTTVTWTZUAUGUMUSUYUZVAVCVEVGVIVNVUWFWSYEYTZAZMZW";
static bool country_known[26 * 26];

static void learn_countries(void) {
  for (const char *code = COUNTRIES; *code; code += 2) country_known[(code[0] - 'A') * 26 + code[1] - 'A'] = true;
}

INLINE void hash(Hashes *h, int field, Bytes bytes, unsigned size) {
  uint8_t *block = h->block[h->count];
  memcpy(block, bytes.at, sizeof bytes);
  sha256_pad(block, size);
  h->field[h->count++] = field;
}

INLINE void hash_lowered(Hashes *h, int field, Text given) {
  if (!given.at) return;
  Text text = trimmed(given);
  hash(h, field, lower(canonical_text(text)), text.size);
}

INLINE void hash_email(Hashes *h, Text given) {
  Text text = trimmed(given);
  Bytes bytes = canonical_text(text);
  EXPECT(!ANY(bytes, text.size, blank(byte)));
  EXPECT(ANY(bytes, 64, byte == '@') && text.at[0] != '@' && text.at[text.size - 1] != '@');
  hash(h, EM, lower(bytes), text.size);
}

INLINE void hash_digits(Hashes *h, int field, Text text) {
  Bytes bytes = canonical_text(text);
  EXPECT(!ANY(bytes, text.size, !digit(byte)));
  hash(h, field, bytes, text.size);
}

INLINE void hash_phone(Hashes *h, Text given) {
  Text text = trimmed(given);
  if (text.size && text.at[0] == '+') text.at++, text.size--;
  while (text.size && text.at[0] == '0') text.at++, text.size--;
  hash_digits(h, PH, text);
}

/* Letters and digits only; of letters beyond ASCII those from a-grave to y-diaeresis, which are in lower case. */
INLINE void hash_city(Hashes *h, Text given) {
  if (!given.at) return;
  Bytes kept = {0};
  unsigned size = 0;
  EXPECT(given.size && given.size <= MAX_SHA256);
  for (unsigned i = 0; i < given.size; i++) {
    uint8_t byte = given.at[i];
    if (byte >= 128) {
      uint8_t second = given.at[++i];
      EXPECT(byte == 0xc3 && second >= 0xa0 && second != 0xb7);
      kept.at[size++] = byte;
      kept.at[size++] = second;
    } else if (letter(byte))
      kept.at[size++] = byte | 32;
    else if (digit(byte))
      kept.at[size++] = byte;
  }
  EXPECT(size);
  hash(h, CT, kept, size);
}

INLINE void hash_fields(Hashes *h, const Event *e) {
  h->count = 0;
  hash_email(h, e->email);
  if (e->phone.at) hash_phone(h, e->phone);
  if (e->gender.at) {
    Text gender = trimmed(e->gender);
    EXPECT(gender.size == 1 && ((gender.at[0] | 32) == 'f' || (gender.at[0] | 32) == 'm'));
    hash_lowered(h, GE, gender);
  }
  hash_lowered(h, LN, e->last_name);
  hash_lowered(h, FN, e->first_name);
  hash_city(h, e->city);
  if (e->state.at) {
    Text state = trimmed(e->state);
    EXPECT(state.size == 2 && letter(state.at[0]) && letter(state.at[1]));
    hash_lowered(h, ST, state);
  }
  if (e->postal_code.at) hash_digits(h, ZP, trimmed(e->postal_code));
  if (e->country.at) {
    Text code = trimmed(e->country);
    EXPECT(code.size == 2 && letter(code.at[0]) && letter(code.at[1]));
    EXPECT(country_known[((code.at[0] | 32) - 'a') * 26 + (code.at[1] | 32) - 'a']);
    hash_lowered(h, COUNTRY, code);
  }
  hash_lowered(h, EXTERNAL_ID, e->external_id);
}

/* What deduplication remembers: account, event name and event id, as a digest. */
INLINE void hash_key(Hashes *h, Text event_id) {
  static const char before[] = "1\0checkout\0";
  const unsigned size = sizeof before - 1;
  uint8_t *block = h->block[h->count++];
  EXPECT(event_id.size && event_id.size <= MAX_SHA256 - size);
  Bytes id = load(event_id);
  memset(block, 0, 64);
  memcpy(block, before, size);
  memcpy(block + size, id.at, 64 - size);
  sha256_pad(block, size + event_id.size);
}

/* ---- JSON ---- */

#define PUT(out, literal) (memcpy(out, literal, sizeof literal - 1), (out) += sizeof literal - 1)

/* A text that needs no escape. Writes up to 64 bytes more than it has. */
INLINE uint8_t *put(uint8_t *out, Text text) {
  for (;;) {
    Bytes bytes;
    memcpy(bytes.at, text.at, sizeof bytes);
    EXPECT(!ANY(bytes, text.size < 64 ? text.size : 64, (byte < ' ') | (byte == '"') | (byte == '\\')));
    memcpy(out, bytes.at, sizeof bytes);
    if (text.size <= 64) return out + text.size;
    out += 64, text.at += 64, text.size -= 64;
  }
}

INLINE uint8_t *put_number(uint8_t *out, uint64_t number) {
  uint8_t digits[20];
  int at = 20;
  do digits[--at] = '0' + number % 10;
  while (number /= 10);
  memcpy(out, digits + at, 20 - at);
  return out + 20 - at;
}

INLINE uint8_t *put_hex(uint8_t *out, const uint8_t *digest) {
  uint16_t pairs[32];
  for (int i = 0; i < 32; i++) pairs[i] = digest[i] >> 4 | (digest[i] & 15) << 8; /* the high half comes first */
  memcpy(out, pairs, sizeof pairs);
  for (int i = 0; i < 64; i++) out[i] += '0' + (out[i] > 9 ? 'a' - '0' - 10 : 0);
  return out + 64;
}

INLINE uint8_t *put_items(uint8_t *out, const Event *e) {
  int64_t quantity = 0;
  PUT(out, "\"contents\":[");
  for (const Item *item = e->item; item < e->item + e->items; item++) {
    EXPECT(item->sku.size && item->category.size && !item->name.at && !item->brand.at);
    EXPECT(item->quantity >= 0 && amount(item->price));
    quantity += item->quantity;
    PUT(out, "{\"id\":\"");
    out = put(out, item->sku);
    PUT(out, "\",\"item_category\":\"");
    out = put(out, item->category);
    PUT(out, "\",\"item_price\":\"");
    out = put(out, item->price);
    PUT(out, "\",\"quantity\":");
    out = put_number(out, item->quantity);
    PUT(out, "},");
  }
  out--;
  PUT(out, "],\"content_ids\":[\"");
  for (const Item *item = e->item; item < e->item + e->items; item++) {
    out = put(out, item->sku);
    PUT(out, "\",\"");
  }
  out -= 2;
  PUT(out, "],\"num_items\":");
  out = put_number(out, quantity);
  PUT(out, ",");
  return out;
}

/* Writes the event's JSON and its key (`KEY_BYTES`); gives where the JSON ends. `now`: seconds, of the clock. */
static uint8_t *convert(const Event *e, uint8_t *out, uint8_t *key, int64_t now) {
  Hashes h;
  Text id = trimmed(e->event_id), currency = e->currency;
  int64_t at = e->occurred_at / 1000;
  EXPECT(at > now - 7 * 86400 && at <= now && currency.size == 3 && amount(e->total));
  hash_fields(&h, e);
  hash_key(&h, id);
  sha256_all((const uint8_t(*)[64])h.block, h.digest, h.count);
  memcpy(key, h.digest[h.count - 1], KEY_BYTES);

  PUT(out, "{\"event_name\":\"checkout\",\"action_source\":\"web\",\"event_time\":");
  out = put_number(out, at);
  PUT(out, ",\"event_id\":\"");
  out = put(out, id);
  PUT(out, "\",\"event_source_url\":\"");
  out = put(out, e->page_url);
  PUT(out, "\",\"opt_out\":");
  if (e->opt_out)
    PUT(out, "true");
  else
    PUT(out, "false");
  PUT(out, ",\"language\":\"");
  out = put(out, e->language);
  PUT(out, "\",\"user_data\":{");
  for (int i = 0; i < h.count - 1; i++) {
    memcpy(out, FIELD[h.field[i]], sizeof *FIELD);
    out = put_hex(out + FIELD_SIZE[h.field[i]], h.digest[i]);
    PUT(out, "\"],");
  }
  if (e->ip_address.at) {
    EXPECT(ipv4(e->ip_address));
    PUT(out, "\"client_ip_address\":\"");
    out = put(out, e->ip_address);
    PUT(out, "\",");
  }
  if (e->user_agent.at) {
    PUT(out, "\"client_user_agent\":\"");
    out = put(out, e->user_agent);
    PUT(out, "\",");
  }
  out--;
  PUT(out, "},\"custom_data\":{");
  if (e->items) out = put_items(out, e);
  PUT(out, "\"currency\":\"");
  for (int i = 0; i < 3; i++) {
    EXPECT(letter(currency.at[i]));
    *out++ = currency.at[i] & ~32;
  }
  PUT(out, "\",\"value\":\"");
  out = put(out, e->total);
  PUT(out, "\",\"order_id\":\"");
  out = put(out, e->order_id);
  PUT(out, "\"}}");
  return out;
}
