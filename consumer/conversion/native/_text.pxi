"""Text that is read and copied sixteen bytes at a time, beyond its end.

Theory of operation. Most values have about ten bytes, and a call of `memcpy` costs more than copying these. So the
reader keeps a record with `PADDING` bytes after it, and a page has as many to spare: then a text can be read and
written in steps of sixteen bytes, and the bytes beyond its end are ignored. Such text is called *padded*.

Comparing two vectors gives a vector: -1 where the comparison holds, else 0. The compiler chooses the instructions.
"""

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    enum { PADDING = 64, HASH_BLOCK = 64 };

    typedef int8_t Sixteen __attribute__((vector_size(16)));

    static const Sixteen PLACES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

    static inline Sixteen sixteen(const unsigned char *from) {
        Sixteen bytes;
        memcpy(&bytes, from, sizeof bytes);
        return bytes;
    }

    static inline Sixteen first(int count) {
        return PLACES < (Sixteen){} + (int8_t) count;
    }

    static inline int is_any(Sixteen found) {
        uint64_t half[2];
        memcpy(half, &found, sizeof half);
        return (half[0] | half[1]) != 0;
    }

    /* A byte beyond ASCII is below zero here. */
    static inline Sixteen not_plain(Sixteen bytes) {
        return (bytes < 32) | (bytes == 34) | (bytes == 92);
    }

    static inline int is_plain(const unsigned char *padded, Py_ssize_t size) {
        Sixteen found = {0};
        for (; size > 16; size -= 16, padded += 16) found |= not_plain(sixteen(padded));
        return !is_any(found | (not_plain(sixteen(padded)) & first((int) size)));
    }

    static inline void copy_padded(char *into, const void *padded, Py_ssize_t size) {
        const unsigned char *from = padded;
        for (; size > 0; size -= 16, from += 16, into += 16) {
            Sixteen bytes = sixteen(from);
            memcpy(into, &bytes, sizeof bytes);
            __asm__ volatile("" : "+r"(from));  /* else the compiler calls memcpy */
        }
    }

    /* The words of a text of at most 32 bytes, zeros beyond its end. */
    static inline void words_of(const unsigned char *padded, Py_ssize_t size, uint64_t words[4]) {
        Sixteen low = sixteen(padded) & first(size < 16 ? (int) size : 16);
        Sixteen high = sixteen(padded + 16) & first(size > 16 ? (int) size - 16 : 0);
        memcpy(words, &low, sizeof low);
        memcpy(words + 2, &high, sizeof high);
    }

    /* Whether it is a canonical amount: digits, perhaps a point and digits; no zero before another digit. Of plain
    text. */ static inline int is_padded_amount(const unsigned char *padded, Py_ssize_t size) {
        Sixteen bytes = sixteen(padded), inside = first((int) size), digits, points;
        if (size > 16 || size < 1) return 0;
        digits = (bytes >= '0') & (bytes <= '9');
        points = (bytes == '.') & inside;
        if (is_any(~(digits | points) & inside)) return 0;
        uint64_t half[2];
        memcpy(half, &points, sizeof half);
        if (!half[0] && !half[1]) return size == 1 || padded[0] != '0';
        if ((half[0] && half[1]) || padded[0] == '.' || padded[size - 1] == '.') return 0;
        half[0] |= half[1];
        half[0] &= 0x0101010101010101u;  /* one bit for a point */
        if (half[0] & (half[0] - 1)) return 0;
        return padded[0] != '0' || padded[1] == '.';
    }

    /* Whether this is a canonical address of the web: http or https, a host in lower case, and what follows a slash
       without blanks. Of plain text. */
    static inline int is_padded_web(const unsigned char *padded, Py_ssize_t size) {
        static const unsigned char IN_HOST[256] = {
            ['-'] = 1, ['.'] = 1, ['0' ... '9'] = 1, ['a' ... 'z'] = 1,
        };
        Sixteen found = {0}, bytes;
        Py_ssize_t at = 7, host;
        if (size < 8 || memcmp(padded, "http", 4)) return 0;
        if (memcmp(padded + 4, "://", 3)) {
            if (memcmp(padded + 4, "s://", 4)) return 0;
            at = 8;
        }
        host = at;
        while (at < size && IN_HOST[padded[at]]) at++;
        if (at == host || (at < size && padded[at] != '/')) return 0;
        for (; at < size; at += 16) {
            bytes = sixteen(padded + at);
            found |= ((bytes < 33) | (bytes == 127)) & first(size - at > 16 ? 16 : (int) (size - at));
        }
        return !is_any(found);
    }

    #define PIECE(a, b, c) (one == (a)) & (two == (b)) & (three == (c))

    /* Whether this may be a crawler's agent: each of `rules.CRAWLERS` holds one of these pieces. What stands beyond the
       end of the text is looked at, too: at the worst a rule is asked in vain. */
    static inline int is_padded_crawler(const unsigned char *padded, Py_ssize_t size) {
        Sixteen found = {0}, one, two, three;
        for (Py_ssize_t at = 0; at < size; at += 16) {
            one = sixteen(padded + at) | 32, two = sixteen(padded + at + 1) | 32, three = sixteen(padded + at + 2) | 32;
            found |= PIECE('b', 'o', 't');
            found |= PIECE('i', 'd', 'e');  /* spider */
            found |= PIECE('a', 'l', 'h');  /* externalhit */
            found |= PIECE('d', 'l', 'e');  /* headless */
            found |= PIECE('i', 'a', 'p');  /* mediapartners */
            found |= PIECE('l', 'u', 'r');  /* slurp */
        }
        return is_any(found);
    }

    /* What a text has: exactly one sign @; characters that stand between addresses or around one (and =, ?); a
       digit other than 0; a blank. */
    enum { ONE_AT = 1, AROUND_ADDRESSES = 2, A_DIGIT = 4, A_BLANK = 8 };

    /* Put a text into a block, in lower case or as it is, zeros behind it. Gives whether it has control characters,
       and in `has` what else it has. */
    static inline int into_block(
        const unsigned char *padded, int size, int lower, unsigned char *block, int *has
    ) {
        Sixteen controls = {0}, blanks = {0}, signs = {0}, around = {0}, digits = {0};
        for (int at = 0; at < HASH_BLOCK; at += 16) {
            Sixteen bytes = sixteen(padded + at);
            Sixteen inside = first(size - at > 16 ? 16 : size > at ? size - at : 0);
            if (lower) bytes += (bytes >= 'A') & (bytes <= 'Z') & 32;
            bytes &= inside;
            controls |= (bytes < 32) & inside;
            blanks |= bytes == 32;
            signs -= bytes == '@';  /* counted by place: one sign leaves one bit in all */
            around |= ((bytes >= ':') & (bytes <= '?')) | (bytes == ',')
                | ((bytes >= '(') & (bytes <= ')')) | ((bytes >= '[') & (bytes <= ']'));
            digits |= (bytes >= '1') & (bytes <= '9');
            memcpy(block + at, &bytes, sizeof bytes);
        }
        uint64_t half[2];
        memcpy(half, &signs, sizeof half);
        const uint64_t all = half[0] | half[1];
        const int one = all && !(half[0] && half[1]) && !(all & (all - 1)) && (all & 0x0101010101010101u);
        *has = (one ? ONE_AT : 0) | (is_any(around) ? AROUND_ADDRESSES : 0) | (is_any(digits) ? A_DIGIT : 0)
            | (is_any(blanks) ? A_BLANK : 0);
        return is_any(controls);
    }
    """
    enum:
        PADDING
        HASH_BLOCK  # bytes of one of SHA-256
        ONE_AT
        AROUND_ADDRESSES
        A_DIGIT
        A_BLANK
    bint is_plain(const unsigned char* padded, Py_ssize_t size) noexcept
    void copy_padded(char* into, const void* padded, Py_ssize_t size) noexcept
    void words_of(const unsigned char* padded, Py_ssize_t size, uint64_t* words) noexcept
    bint is_padded_web(const unsigned char* padded, Py_ssize_t size) noexcept
    bint is_padded_crawler(const unsigned char* padded, Py_ssize_t size) noexcept
    bint is_padded_amount(const unsigned char* padded, Py_ssize_t size) noexcept
    bint into_block(const unsigned char* padded, int size, bint lower, unsigned char* block, int* has) noexcept
