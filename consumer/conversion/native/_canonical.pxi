"""Values in their canonical form: shortcuts that give the answers of rules without calling them.

Theory of operation. Most e-mail addresses, telephone numbers and prices are spelled so that a rule has nothing to
decide. These functions answer for such values, and say of every other value that it is not canonical; then the rule is
called. The rule defines what is right, and a property test compares each shortcut with it.

Text is read with padding after it (`_text`), as in a record; the text of an object is copied to such a place first.
"""

from decimal import Decimal as decimal_type

from consumer.conversion.placeholders import FIRST_BIRTH_YEAR, LAST_BIRTH_YEAR, NAMES, NETWORKS

cdef extern from "Python.h":
    int PyUnicode_CheckExact(object text)

cdef enum:
    LONGEST = 1000       # bytes: a longer text of an object is not canonical
    DIGEST = 64          # hex digits of SHA-256
    FIRST_DAY = 719162   # days from 0001-01-01 to 1970-01-01
    LAST_DAY = 2932896   # 9999-12-31
    MAX_WORDS = 32      # that stand for nothing
    LONGEST_WORD = 16    # characters of one

cdef object Decimal = decimal_type
cdef object LARGEST = 10**18
# The words for no name, and which characters they begin with (`placeholders`).
cdef unsigned char words[MAX_WORDS][LONGEST_WORD]
cdef int word_sizes[MAX_WORDS]
cdef bint begins_word[256]
# Whether an IPv4 address that begins with these two numbers belongs to a network in `placeholders`.
cdef unsigned char in_network[256][256]
cdef int first_birth_year = FIRST_BIRTH_YEAR, last_birth_year = LAST_BIRTH_YEAR


def _read_words():
    cdef int number, at
    for number, word in enumerate(sorted(NAMES)):
        word_sizes[number] = len(word)
        begins_word[ord(word[0])] = True
        for at in range(len(word)):
            words[number][at] = ord(word[at])


if len(NAMES) > MAX_WORDS or max(map(len, NAMES)) > LONGEST_WORD:
    raise ImportError("placeholders.NAMES has more or longer words than fit")
_read_words()


def _read_networks():
    cdef int start, number
    for network in NETWORKS:
        if network.version == 4:
            if network.prefixlen > 16:
                raise ImportError("placeholders.NETWORKS has an IPv4 network of less than 65,536 addresses")
            start = int(network.network_address) >> 16
            for number in range(start, start + (1 << 16 - network.prefixlen)):
                in_network[number >> 8][number & 255] = True


_read_networks()


# -- the values of objects


cdef object canonical_answer(int kind, object value):
    """Return the answer of this kind's rule to a canonical value; None if it is not canonical."""
    cdef unsigned char padded[LONGEST + PADDING]
    cdef Digests alone
    cdef char digits[DIGEST]
    cdef Py_ssize_t size
    cdef bint is_count
    if kind <= CANONICAL_TEXT:  # sent as it is
        if not PyUnicode_CheckExact(value):
            value = number_text(kind, value)
        size = pad(value, LONGEST, padded)
        return value if size and is_plain(padded, size) and is_canonical(kind, padded, size) else None
    if kind == CANONICAL_DAY:
        is_count = PyLong_CheckExact(value) and -LARGEST < value < LARGEST
        size = block_of_day(value, alone.block[0]) if is_count else 0
    else:
        if PyLong_CheckExact(value) and 0 < value <= LARGEST:
            value = str(value)
        size = block_of(kind, padded, pad(value, MAX_HASHED, padded), alone.block[0])
    if size == 0:
        return None
    alone.count = 0
    await_digest(&alone, <int> size, digits, 0)
    hash_waiting(&alone, digits)
    return PyUnicode_DecodeASCII(digits, DIGEST, NULL)


cdef Py_ssize_t pad(object value, Py_ssize_t longest, unsigned char* padded) except -1:
    """Copy ASCII text, with padding after it; return its size, or 0 if it is no ASCII text or too long."""
    if not PyUnicode_CheckExact(value) or not PyUnicode_IS_COMPACT_ASCII(value):
        return 0
    cdef Py_ssize_t size = PyUnicode_GET_LENGTH(value)
    if size > longest:
        return 0
    memcpy(padded, PyUnicode_DATA(value), size)
    memset(padded + size, 0, PADDING)
    return size


cdef inline bint takes_number(int kind, bint is_whole) noexcept:
    """Return whether numbers are canonical in this kind: whole ones where text is meant, all in an amount."""
    return kind == CANONICAL_AMOUNT or is_whole and (kind == CANONICAL_TEXT or kind == CANONICAL_ORDER)


cdef object number_text(int kind, object value):
    """Return the text of a canonical number; whole ones are above 0."""
    cdef bint is_whole = PyLong_CheckExact(value)
    if not takes_number(kind, is_whole) or is_whole and not 0 < value <= LARGEST:
        return None
    return str(value) if is_whole or type(value) is Decimal or type(value) is float else None


# -- values that are sent as they are


cdef inline bint is_canonical(int kind, const unsigned char* padded, Py_ssize_t size) noexcept:
    """Return whether this padded, plain text certainly passes the rule of this kind."""
    if kind == CANONICAL_TEXT:  # the blank is followed by "!": neither empty nor blank
        return size > 0 and padded[0] >= c"!"
    if kind == CANONICAL_ORDER:  # nor is it 0
        return size > 0 and padded[0] >= c"1"
    if kind == CANONICAL_ADDRESS:
        return is_ipv4(padded, size) or is_full_ipv6(padded, size)
    if kind == CANONICAL_AMOUNT:
        return is_padded_amount(padded, size)
    return kind == CANONICAL_WEB and is_padded_web(padded, size)


cdef int put_digits(int64_t number, int scale, char* into) noexcept:
    """Write a number from 0 to 10**18 as `amount` does, with a point before its last `scale` digits; return its
    size."""
    cdef char digits[NUMBER_ROOM]
    cdef int at = NUMBER_ROOM, behind = 0
    while number or behind <= scale:  # there is at least one digit before the point
        if behind == scale and scale:
            at -= 1
            digits[at] = c"."
        at -= 1
        digits[at] = 48 + number % 10
        number //= 10
        behind += 1
    memcpy(into, digits + at, NUMBER_ROOM - at)
    return NUMBER_ROOM - at


cdef inline bint is_digit(unsigned char byte) noexcept:
    return 48 <= byte <= 57


cdef inline unsigned char lowered(unsigned char byte) noexcept:
    return byte + 32 if 65 <= byte <= 90 else byte


cdef bint is_ipv4(const unsigned char* text, Py_ssize_t size) noexcept:
    """Return whether this is four numbers up to 255 without leading zeros, and no address of a network in
    `placeholders`."""
    cdef int octet = 0, digits = 0, octets = 1, first = 0
    cdef Py_ssize_t at
    for at in range(size):
        if text[at] == c".":
            if digits == 0 or octets == 4 or octets == 2 and in_network[first][octet]:
                return False
            first = octet if octets == 1 else first
            octets += 1
            octet = digits = 0
        elif is_digit(text[at]) and digits < 3 and (digits == 0 or octet):
            octet = octet * 10 + text[at] - 48
            digits += 1
            if octet > 255:
                return False
        else:
            return False
    return octets == 4 and digits > 0


cdef bint is_full_ipv6(const unsigned char* text, Py_ssize_t size) noexcept:
    """Return whether this is eight groups of one to four hex digits.

    The first digit must be neither 0 nor f, so it is neither the unspecified nor a mapped IPv4 address, nor one of a
    network of `placeholders`.
    """
    cdef int digits = 0, groups = 1
    cdef Py_ssize_t at
    if size == 0 or text[0] == c"0" or lowered(text[0]) == c"f":
        return False
    for at in range(size):
        if text[at] == c":":
            if digits == 0 or groups == 8:
                return False
            groups += 1
            digits = 0
        elif digits < 4 and (is_digit(text[at]) or 97 <= lowered(text[at]) <= 102):
            digits += 1
        else:
            return False
    return groups == 8 and digits > 0


# -- click ids


cdef Py_ssize_t canonical_click_id(const unsigned char* text, Py_ssize_t size, Py_ssize_t* begun) noexcept:
    """Return the length of the click id in this address, and where it begins; 0: it has none; -1: call `click_id_of`.

    The address must have passed `is_padded_web`, so all of it is visible ASCII.
    """
    cdef const void* found = memchr(text, c"#", size)
    cdef Py_ssize_t at, end
    if found != NULL:
        size = <const unsigned char*> found - text
    found = memchr(text, c"?", size)
    while found != NULL:
        at = <const unsigned char*> found - text + 1
        found = memchr(text + at, c"&", size - at)
        end = size if found == NULL else <const unsigned char*> found - text
        if end - at > 5 and memcmp(text + at, b"epik=", 5) == 0:
            begun[0] = at + 5
            if memchr(text + at, c"%", end - at) != NULL:
                return -1
            return end - at - 5 if end - at - 5 <= LONGEST_CLICK_ID else 0
    return 0


# -- values that are hashed


cdef inline int block_of(int kind, const unsigned char* padded, Py_ssize_t length, unsigned char* block) noexcept:
    """Normalise padded text into a block of SHA-256, followed by zeros; return how many bytes it has then, 0 if it is
    not canonical. Text of more than one block is not: it may be a digest already."""
    cdef int has = 0, size = <int> length
    if length == 0 or length > MAX_HASHED:
        return 0
    if kind == CANONICAL_NAME:  # blanks inside stay
        if into_block(padded, size, True, block, &has) or padded[0] == 32 or padded[size - 1] == 32:
            return 0
        return 0 if is_no_name(block, size) else size
    if kind == CANONICAL_EMAIL or kind == CANONICAL_LOWERED or kind == CANONICAL_AS_WRITTEN:
        if into_block(padded, size, kind != CANONICAL_AS_WRITTEN, block, &has) or has & A_BLANK:
            return 0
        if kind != CANONICAL_EMAIL:  # no word that stands for nothing has a digit
            return size if has & A_DIGIT else 0
        if has & (ONE_AT | AROUND_ADDRESSES) != ONE_AT or block[0] == c"@":
            return 0
        return 0 if block[size - 1] == c"@" or block[size - 1] == c'"' else size
    memset(block, 0, HASH_BLOCK)
    return normalised(kind, padded, size, block)


cdef int normalised(int kind, const unsigned char* text, int size, unsigned char* into) noexcept:
    """Do `block_of` for kinds that are normalised byte by byte. Apart, so that `block_of` can be inlined."""
    if kind == CANONICAL_PHONE:
        return phone(text, size, into)
    if kind == CANONICAL_DIGITS:
        return digits_only(text, size, into)
    if kind == CANONICAL_CITY:
        return city(text, size, into)
    return birthday(text, size, into) if kind == CANONICAL_BIRTHDAY else 0


cdef bint is_no_name(const unsigned char* lowered, int size) noexcept:
    """Return whether a name in lower case is a word that stands for nothing."""
    cdef int at
    if size > LONGEST_WORD or not begins_word[lowered[0]]:
        return False
    for at in range(MAX_WORDS):
        if word_sizes[at] == size and memcmp(words[at], lowered, size) == 0:
            return True
    return False


cdef int city(const unsigned char* text, int size, unsigned char* into) noexcept:
    """Keep letters and digits, in lower case; remove blanks and common punctuation."""
    cdef int at, kept = 0
    if text[0] <= 32 or text[size - 1] <= 32:
        return 0
    for at in range(size):
        if 97 <= lowered(text[at]) <= 122 or is_digit(text[at]):
            into[kept] = lowered(text[at])
            kept += 1
        elif text[at] != c" " and text[at] != c"-" and text[at] != c"." and text[at] != c"'":
            return 0
    return 0 if kept and is_no_name(into, kept) else kept


cdef int phone(const unsigned char* text, int size, unsigned char* into) noexcept:
    """Keep the digits from the first that is not 0. A text with a point is not canonical: it may be a number like
    94107.0."""
    cdef int at, digits = 0
    for at in range(size):
        if text[at] == c".":
            return 0
        if is_digit(text[at]) and (digits or text[at] != 48):
            into[digits] = text[at]
            digits += 1
    return digits


cdef int digits_only(const unsigned char* text, int size, unsigned char* into) noexcept:
    """Take text that has only digits, as it is."""
    cdef int at
    for at in range(size):
        if not is_digit(text[at]):
            return 0
    memcpy(into, text, size)
    return size


cdef int birthday(const unsigned char* text, int size, unsigned char* into) noexcept:
    """Normalise a real day, written as ``YYYYMMDD`` or ``YYYY-MM-DD``, to ``YYYYMMDD``."""
    cdef int at, kept = 0
    cdef bint marked = size == 10 and text[4] == c"-" and text[7] == c"-"
    if not marked and size != 8:
        return 0
    for at in range(size):
        if marked and (at == 4 or at == 7):
            continue
        if not is_digit(text[at]):
            return 0
        into[kept] = text[at]
        kept += 1
    return kept if is_day(two(into) * 100 + two(into + 2), two(into + 4), two(into + 6)) else 0


cdef inline int two(const unsigned char* digits) noexcept:
    return (digits[0] - 48) * 10 + digits[1] - 48


cdef bint is_day(int year, int month, int day) noexcept:
    """Return whether the calendar has this day, in a year in which a shopper may be born."""
    if not first_birth_year <= year <= last_birth_year or month == 0 or month > 12 or day == 0:
        return False
    if month == 2:
        return day <= (29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28)
    return day <= (30 if month == 4 or month == 6 or month == 9 or month == 11 else 31)


cdef int block_of_day(long long count, unsigned char* into) noexcept:
    """Write ``YYYYMMDD`` of the day that is this many days after 1970-01-01, as `block_of` does; return 0 if no shopper
    is born on it."""
    cdef int days, era, of_era, year, of_year, month, day
    if count < -FIRST_DAY or count > LAST_DAY:
        return 0
    # Years are counted from March, in eras of 400 years: days since 0000-03-01, which is 306 days before 0001-01-01.
    days = <int> count + FIRST_DAY + 306
    era = days // 146097
    of_era = days - era * 146097
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month += 3 if month < 10 else -9
    year += era * 400 + (month <= 2)
    if not first_birth_year <= year <= last_birth_year:
        return 0
    memset(into, 0, HASH_BLOCK)
    put_two(into, year // 100)
    put_two(into + 2, year % 100)
    put_two(into + 4, month)
    put_two(into + 6, day)
    return 8


cdef inline void put_two(unsigned char* into, int number) noexcept:
    into[0], into[1] = 48 + number // 10, 48 + number % 10
