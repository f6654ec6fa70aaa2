# Run by shoal_embed: INPUT's bytes as a C++ array in OUTPUT.
file(READ ${INPUT} hex HEX)
string(LENGTH "${hex}" digits)
math(EXPR size "${digits} / 2")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "\\\\x\\1" bytes "${hex}")
# A string literal of at most 64 KiB a piece is compiled far faster than a list of numbers.
string(REGEX REPLACE "(\\\\x[0-9a-f][0-9a-f]\\\\x[0-9a-f][0-9a-f]\\\\x[0-9a-f][0-9a-f]\\\\x[0-9a-f][0-9a-f])" "\\1\"\n\"" lines "${bytes}")
file(WRITE ${OUTPUT} "namespace shoal::embedded {
extern const char ${SYMBOL}[];
extern const unsigned long ${SYMBOL}_size;
const char ${SYMBOL}[] =
\"${lines}\";
const unsigned long ${SYMBOL}_size = ${size};
}  // namespace shoal::embedded
")
