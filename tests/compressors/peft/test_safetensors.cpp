#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <locale>

#include "peft_fixtures.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/json_strict.h"
#include "thinwire/compressors/peft/safetensors.h"

namespace thinwire::peft {
namespace {

using testing::HasSubstr;

// A file with this header and so many bytes of data, counting up.
std::string file_of(const std::string& header, std::size_t data) {
  const std::uint64_t length = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  out += header;
  for (std::size_t i = 0; i < data; ++i) out += static_cast<char>(i);
  return out;
}

std::string error_of(const std::string& content) {
  const test::TemporaryDir dir;
  test::write_text(dir / "x", content);
  try {
    const SafetensorsFile file(dir / "x");
  } catch (const FileError& error) {
    EXPECT_THAT(error.what(), HasSubstr((dir / "x").string()));
    return error.what();
  }
  return "";
}

std::string tensor(const char* name, const char* dtype, const char* shape, int begin, int end) {
  return concat('"', name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape, ",\"data_offsets\":[",
                begin, ',', end, "]}");
}

struct Rule {
  const char* name;
  std::string header;
  std::size_t data;
  const char* complaint;  // "" for a file that is legal
};

class Rules : public testing::TestWithParam<Rule> {};

TEST_P(Rules, Hold) {
  const Rule& rule = GetParam();
  const std::string error = error_of(file_of(rule.header, rule.data));
  if (*rule.complaint == '\0')
    EXPECT_EQ(error, "");
  else
    EXPECT_THAT(error, HasSubstr(rule.complaint));
}

INSTANTIATE_TEST_SUITE_P(
    Safetensors, Rules,
    testing::Values(
        Rule{"NoTensors", "{}", 0, ""}, Rule{"PaddedWithSpaces", "{}      ", 0, ""},
        Rule{"Rank0", concat("{", tensor("a", "F32", "[]", 0, 4), "}"), 4, ""},
        Rule{"ZeroSize", concat("{", tensor("a", "F32", "[3,0]", 0, 0), "}"), 0, ""},
        Rule{"ZeroSizeBetween",
             concat("{", tensor("a", "U8", "[2]", 0, 2), ",", tensor("b", "U8", "[0]", 2, 2), ",",
                    tensor("c", "U8", "[1]", 2, 3), "}"),
             3, ""},
        Rule{"AnyOrder",
             concat("{", tensor("b", "U8", "[2]", 1, 3), ",", tensor("a", "U8", "[1]", 0, 1), "}"),
             3, ""},
        Rule{"Metadata", "{\"__metadata__\":{\"k\":\"v\",\"w\":\"\"}}", 0, ""},
        Rule{"EscapedName", concat("{", tensor("\\u00e9\\\"", "U8", "[1]", 0, 1), "}"), 1, ""},
        Rule{"LeadingSpace", " {}", 0, "must begin with '{'"},
        Rule{"Array", "[]", 0, "must begin with '{'"}, Rule{"NotJson", "{]", 0, "not valid JSON"},
        Rule{"TextAfterJson", "{}{}", 0, "not valid JSON"},
        Rule{"BadUtf8", "{\"__metadata__\":{\"k\":\"\xff\"}}", 0, "not valid JSON"},
        Rule{"Deep", "{\"a\":[[[[[[1]]]]]]}", 0, "deeper"},
        Rule{"DuplicateTensor",
             concat("{", tensor("a", "U8", "[1]", 0, 1), ",", tensor("a", "U8", "[1]", 1, 2), "}"),
             2, "'a' occurs twice"},
        Rule{"DuplicateKeyInEntry",
             "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
             "'dtype' occurs twice"},
        Rule{"DuplicateMetadata", "{\"__metadata__\":{\"k\":\"v\",\"k\":\"w\"}}", 0,
             "'k' occurs twice"},
        Rule{"MetadataNumber", "{\"__metadata__\":{\"k\":1}}", 0, "must be a string"},
        Rule{"MetadataText", "{\"__metadata__\":\"k\"}", 0, "must be an object"},
        Rule{"EntryNotObject", "{\"a\":1}", 0, "expected a JSON object"},
        Rule{"UnknownDtype", concat("{", tensor("a", "F31", "[1]", 0, 4), "}"), 4, "unknown dtype"},
        Rule{"DtypeMissing", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
             "'dtype' is missing"},
        Rule{"UnknownMember",
             "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":0}}", 1,
             "only dtype, shape and data_offsets"},
        Rule{"NegativeExtent", concat("{", tensor("a", "U8", "[-1]", 0, 1), "}"), 1,
             "integer in [0"},
        Rule{"FractionalExtent", concat("{", tensor("a", "U8", "[1.0]", 0, 1), "}"), 1,
             "integer in [0"},
        Rule{"HugeExtent", concat("{", tensor("a", "U8", "[18446744073709551615]", 0, 1), "}"), 1,
             "integer in [0"},
        Rule{"ShapeOverflows",
             concat("{", tensor("a", "U8", "[4294967296,4294967296,4294967296]", 0, 0), "}"), 0,
             "overflows"},
        Rule{"BytesOverflow", concat("{", tensor("a", "F64", "[2305843009213693952]", 0, 0), "}"),
             0, "overflows"},
        Rule{"ThreeOffsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1,
             "[begin, end]"},
        Rule{"OffsetsBackwards", concat("{", tensor("a", "U8", "[1]", 1, 0), "}"), 1,
             "do not hold"},
        Rule{"OffsetsPastTheEnd", concat("{", tensor("a", "U8", "[2]", 0, 2), "}"), 1,
             "do not hold"},
        Rule{"ShapeUnlikeOffsets", concat("{", tensor("a", "F32", "[2]", 0, 4), "}"), 4,
             "do not hold"},
        Rule{"HoleAtTheStart", concat("{", tensor("a", "U8", "[1]", 1, 2), "}"), 2, "begins at 1"},
        Rule{"HoleBetween",
             concat("{", tensor("a", "U8", "[1]", 0, 1), ",", tensor("b", "U8", "[1]", 2, 3), "}"),
             3, "begins at 2"},
        Rule{"Overlap",
             concat("{", tensor("a", "U8", "[2]", 0, 2), ",", tensor("b", "U8", "[2]", 1, 3), "}"),
             3, "begins at 1"},
        Rule{"BytesAfterTheLast", concat("{", tensor("a", "U8", "[1]", 0, 1), "}"), 2, "end at 1"}),
    [](const auto& rule) { return rule.param.name; });

TEST(Safetensors, HeaderLengthIsCapped) {
  std::string file = file_of("{}", 100);
  for (const std::uint64_t length : {std::uint64_t{103}, kMaxSafetensorsHeader + 1, UINT64_MAX}) {
    std::memcpy(file.data(), &length, 8);
    EXPECT_THAT(error_of(file), HasSubstr(concat("claims ", length, " bytes")));
  }
}

TEST(Safetensors, TooShortFilesAndFoldersAreRefused) {
  for (std::size_t size = 0; size < 10; ++size)
    EXPECT_THAT(error_of(std::string(size, '\0')), HasSubstr("too few"));
  EXPECT_THROW(SafetensorsFile("/"), FileError);
  EXPECT_THROW(SafetensorsFile("no such file"), FileError);
}

TEST(Safetensors, WrittenFilesReadBack) {
  const test::TemporaryDir dir;
  const std::vector<TensorInfo> tensors{
      {"z", "F32", {2, 2}}, {"a", "BF16", {3}}, {"e", "I64", {0}}, {"s", "U8", {}}};
  const SafetensorsFile::Metadata metadata{{"format", "pt"}, {"quote", "\"\n"}};
  std::string data(16 + 6 + 0 + 1, '\0');
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(200 + i);
  {
    SafetensorsWriter writer(dir / "f", tensors, metadata, false);
    writer.write(std::as_bytes(std::span(data)).first(7));
    writer.write(std::as_bytes(std::span(data)).subspan(7));
    writer.commit();
  }
  const SafetensorsFile file(dir / "f");
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.tensors()[3].shape, (std::vector<std::int64_t>{2, 2}));
  EXPECT_EQ(std::memcmp(file.bytes("z").data(), data.data(), 16), 0);
  EXPECT_EQ(std::memcmp(file.bytes("a").data(), data.data() + 16, 6), 0);
  EXPECT_EQ(file.bytes("e").size(), 0u);
  EXPECT_EQ(file.find("nothing"), nullptr);
  EXPECT_THROW(file.bytes("nothing"), FileError);
  // The tensors begin at a multiple of 8.
  EXPECT_EQ((file.bytes("z").data() - file.file_bytes().data()) % 8, 0);
}

TEST(Safetensors, AFileAppearsOnlyWhenItIsComplete) {
  const test::TemporaryDir dir;
  const std::vector<TensorInfo> tensors{{"a", "U8", {4}}};
  const std::string data = "abcd";
  {
    SafetensorsWriter writer(dir / "f", tensors, {}, false);
    writer.write(std::as_bytes(std::span(data)));
    EXPECT_FALSE(std::filesystem::exists(dir / "f"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir / "")) << "the temporary file is left behind";

  test::write_text(dir / "f", "precious");
  EXPECT_THROW(SafetensorsWriter(dir / "f", tensors, {}, false), FileError);
  {
    SafetensorsWriter writer(dir / "f", tensors, {}, true);
    EXPECT_THROW(writer.commit(), InternalError) << "bytes are missing";
  }
  EXPECT_EQ(test::read_text(dir / "f"), "precious");
  EXPECT_THROW(SafetensorsWriter(dir / "g", {{"a", "U8", {1}}, {"a", "U8", {1}}}, {}, false),
               InvalidArgument);
  EXPECT_THROW(SafetensorsWriter(dir / "g", {{"a", "U9", {1}}}, {}, false), InvalidArgument);
}

TEST(Safetensors, ForeignFilesAreNamed) {
  EXPECT_THAT(error_of("<!DOCTYPE html><html>{}"),
              HasSubstr("no safetensors file but an HTML page"));
  EXPECT_THAT(error_of("<HTML lang=\"en\">"), HasSubstr("an HTML page"));
  EXPECT_THAT(error_of("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
              HasSubstr("git lfs pull"));
  EXPECT_THAT(error_of("PK\x03\x04" + std::string(20, '\0')), HasSubstr("holds a pickle"));
  EXPECT_THAT(error_of("\x80\x02}q" + std::string(20, '\x01')),
              HasSubstr("a pickle, which can run"));
  EXPECT_THAT(error_of("{\n  \"peft_type\": \"LORA\"\n}\n"), HasSubstr("a text file"));
  EXPECT_EQ(error_of(file_of("{}", 0)), "");
}

// A name is whoever's made the file; it must not reach a terminal as it is.
TEST(Safetensors, NamesInErrorsAreEscaped) {
  const std::string error =
      error_of(file_of(concat("{", tensor("\\u001b[2J\\u0007", "U8", "[2]", 0, 1), "}"), 1));
  EXPECT_THAT(error, HasSubstr("tensor '\\x1b[2J\\x07'"));
  for (const char c : error) EXPECT_GE(static_cast<unsigned char>(c), 0x20);
  const std::string raw = error_of(file_of("{\"\x9b\x1b\":1}", 0));  // not even JSON
  EXPECT_THAT(raw, HasSubstr("not valid JSON"));
  for (const char c : raw) EXPECT_TRUE(c >= 0x20 && c < 0x7F) << raw;
}

TEST(Safetensors, FingerprintIsThatOfTheTensorsAlone) {
  const test::TemporaryDir dir;
  const auto a = test::normal_values(6, 1), b = test::normal_values(3, 2);
  const auto print = [&](const std::vector<test::FloatTensor>& tensors) {
    test::write_tensors(dir / "f", tensors);
    return fingerprint(SafetensorsFile(dir / "f"));
  };
  const std::string found = print({{"a", {2, 3}, a}, {"b", {3}, b}});
  EXPECT_EQ(found.size(), 32u);
  EXPECT_EQ(found, print({{"b", {3}, b}, {"a", {2, 3}, a}}));
  EXPECT_NE(found, print({{"a", {3, 2}, a}, {"b", {3}, b}}));
  EXPECT_NE(found, print({{"a", {2, 3}, a}, {"c", {3}, b}}));
  auto changed = b;
  changed[1] = std::nextafter(changed[1], 9.0f);
  EXPECT_NE(found, print({{"a", {2, 3}, a}, {"b", {3}, changed}}));
}

// A base is the same base in every country.
TEST(Safetensors, FingerprintsDoNotDependOnTheLocale) {
  struct Grouped : std::numpunct<char> {
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  const test::TemporaryDir dir;
  const auto print = [&] {
    test::write_tensors(dir / "f", {{"a", {1234}, test::normal_values(1234, 1)}});
    return fingerprint(SafetensorsFile(dir / "f"));
  };
  const std::string expected = print();
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Grouped));
  const std::string found = print();
  std::locale::global(before);
  EXPECT_EQ(found, expected);
}

}  // namespace
}  // namespace thinwire::peft
