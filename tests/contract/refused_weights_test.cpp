// What load() refuses in files of weights and their index: one row each, with the words that the message must have.
#include "support/files.hpp"

namespace refused_weights_test {

using namespace minimamba;
using support::Change;
using support::Folder;
using support::header_text;
using support::instead_of;
using support::is;
using support::Refusal;
using support::safetensors_file;
using support::write;
namespace fs = std::filesystem;

class RefusedWeights : public testing::TestWithParam<Refusal> {};
TEST_P(RefusedWeights, AreNamedAndLeaveEverythingAsItWas) { support::expect_refused(GetParam()); }
std::string name_of_row(const testing::TestParamInfo<Refusal>& row) { return row.param.name; }

const std::string weights = "model.safetensors", index_name = "model.safetensors.index.json";

/// The last tensor of the saved model, whose entry in the header is
///   "backbone.norm_f.weight":{"dtype":"F32","shape":[8],"data_offsets":[6208,6240]}
const std::string norm_f = "backbone.norm_f.weight", type = R"("dtype":"F32")", shape = R"("shape":[8])",
                  offsets = R"("data_offsets":[6208,6240])",
                  entry = "\"" + norm_f + "\":{" + type + "," + shape + "," + offsets + "}";

Change norm_f_with(const std::string& from, const std::string& to) {
  std::string changed = entry;
  support::replace(changed, from, to);
  return header_text(entry, changed);
}

/// The file with another header length, and of another size if that is given.
Change length(std::uint64_t header, std::uint64_t size = 0) {
  return [=](const Folder& folder) {
    std::string file = support::read_text(folder / weights);
    std::memcpy(file.data(), &header, sizeof(header));
    support::write_text(folder / weights, file);
    if (size != 0) fs::resize_file(folder / weights, size);
  };
}

/// A header of 100 MB: this text, then zeros.
Change header_of_zeros(const std::string& text) {
  return [=](const Folder& folder) {
    std::string file = safetensors_file(text);
    const std::uint64_t length = 100'000'000;
    std::memcpy(file.data(), &length, sizeof(length));
    support::write_text(folder / weights, file);
    fs::resize_file(folder / weights, sizeof(length) + length);
  };
}

Change shortened(std::uintmax_t bytes) {
  return [=](const Folder& folder) { fs::resize_file(folder / weights, fs::file_size(folder / weights) - bytes); };
}

INSTANTIATE_TEST_SUITE_P(
    Length, RefusedWeights,
    testing::Values(
        Refusal{"EmptyFile", write(weights, ""), is<FormatError>, {weights, "8 bytes", "only 0 bytes"}},
        Refusal{"SevenBytes", write(weights, "\1\2\3\4\5\6\7"), is<FormatError>, {weights, "8 bytes", "only 7 bytes"}},
        Refusal{"EightBytes", write(weights, std::string(8, '\0')), is<FormatError>, {weights, "'{'"}},
        Refusal{"BeyondTheFile", length(8321), is<FormatError>, {weights, "within the file", "8321", "8328 bytes"}},
        Refusal{"NotCountable", length(~0ULL), is<FormatError>, {weights, "18446744073709551615"}},
        Refusal{"OverflowsWithItsEight", length(~0ULL - 7), is<FormatError>, {weights, "18446744073709551608"}},
        Refusal{"Beyond100MB", length(100'000'001, 200'000'000), is<FormatError>, {weights, "100 MB", "100000001"}},
        Refusal{"CutsTheHeader", length(1000), is<FormatError>, {weights, "JSON"}},
        Refusal{"HeaderOfZeros", header_of_zeros(""), is<FormatError>, {weights, "'{'"}},
        Refusal{"HeaderOfBraceAndZeros", header_of_zeros("{"), is<FormatError>, {weights, "zero byte"}},
        Refusal{"HeaderOfSpaces", write(weights, safetensors_file("        ")), is<FormatError>, {weights, "'{'"}},
        Refusal{"HeaderOfNothing",
                write(weights, safetensors_file("{}")),
                is<CheckpointError>,
                {weights, "backbone.", "no tensor"}},
        Refusal{"HeaderAfterASpace", header_text("{\"__m", " {\"__m"), is<FormatError>, {weights, "'{'"}},
        Refusal{"HeaderIsAnArray", write(weights, safetensors_file("[]")), is<FormatError>, {weights, "'{'"}},
        Refusal{"HeaderFollowedByMore", header_text("}}", "}} x"), is<FormatError>, {weights, "JSON"}},
        Refusal{"HeaderWithZeroByte", header_text("}}", std::string("}}\0", 3)), is<FormatError>, {weights, "zero"}},
        Refusal{
            "HeaderWithByteOrderMark", header_text("{\"__m", "\xEF\xBB\xBF{\"__m"), is<FormatError>, {weights, "{"}},
        Refusal{"HeaderNotUtf8", header_text("norm_f", "norm\xFF"), is<FormatError>, {weights, "JSON", "UTF-8"}},
        Refusal{"DataCut", shortened(1), is<FormatError>, {weights, "6240 bytes of tensors", "6239 bytes of data"}},
        Refusal{"AllDataCut", shortened(6240), is<FormatError>, {weights, "6240 bytes", "0 bytes of data"}},
        Refusal{"DataFollowedByMore", header_text("}}", "}}", "x"), is<FormatError>, {weights, "6240", "6241"}}),
    name_of_row);

INSTANTIATE_TEST_SUITE_P(
    Tensor, RefusedWeights,
    testing::Values(
        Refusal{"Missing",
                header_text("," + entry, R"(,"x":{"dtype":"F32","shape":[8],"data_offsets":[6208,6240]})"),
                is<CheckpointError>,
                {weights, norm_f, "[8]", "no tensor", "config.json"}},
        Refusal{
            "Unknown",
            header_text(entry,
                        R"("backbone.layers.7.norm.weight":{"dtype":"F32","shape":[0],"data_offsets":[6208,6208]},)" +
                            entry),
            is<CheckpointError>,
            {weights, "backbone.layers.7.norm", "the model has no such tensor", "config.json"}},
        Refusal{
            "Twice",
            header_text(entry,
                        entry + R"(,"backbone.norm_f.weight":{"dtype":"F32","shape":[0],"data_offsets":[6240,6240]})"),
            is<CheckpointError>,
            {weights, norm_f, "another tensor of this name"}},
        Refusal{"TwiceInOnePlace",
                header_text(entry, entry + "," + entry),
                is<FormatError>,
                {weights, norm_f, "overlap another tensor"}},
        Refusal{"EmbeddingByBothNames",
                header_text(entry,
                            R"("backbone.embedding.weight":{"dtype":"F32","shape":[0],"data_offsets":[6240,6240]},)" +
                                entry),
                is<CheckpointError>,
                {weights, "backbone.embedding.weight", "the model has no such tensor"}},
        Refusal{"OfAnotherShape",
                norm_f_with("[8]", "[2,4]"),
                is<CheckpointError>,
                {weights, norm_f, "[8]", "[2, 4]", "hidden_size 8"}},
        Refusal{"Transposed",
                header_text("[32,8]", "[8,32]"),
                is<CheckpointError>,
                {weights, "layers.0.mixer.in_proj.weight", "[32, 8]", "[8, 32]", "hidden_size 8", "expand 2"}},
        Refusal{"Squeezed",
                header_text("[16,1,4]", "[16,4]"),
                is<CheckpointError>,
                {weights, "conv1d.weight", "[16, 1, 4]", "[16, 4]"}},
        Refusal{"OfWholeNumbers",
                norm_f_with("F32", "I32"),
                is<CheckpointError>,
                {weights, norm_f, "floating-point", "I32"}},
        Refusal{"OfTruths",
                norm_f_with(type + "," + shape, R"("dtype":"BOOL","shape":[32])"),
                is<CheckpointError>,
                {weights, norm_f, "[8]", "[32]"}},
        Refusal{"OfTheWrongWidth",
                norm_f_with("F32", "F64"),
                is<FormatError>,
                {weights, norm_f, "64 bytes for F64 of shape [8]", "[6208, 6240]"}},
        Refusal{"OfUnknownType",
                norm_f_with("F32", "F33"),
                is<CheckpointError>,
                {weights, norm_f, "floating-point", "F33"}},
        Refusal{"OfNoType", norm_f_with("F32", ""), is<FormatError>, {weights, norm_f, "the name of a type"}},
        Refusal{"OfALongType",
                norm_f_with("F32", std::string(33, 'F')),
                is<FormatError>,
                {weights, norm_f, "the name of a type"}},
        Refusal{"OfLowerCaseType",
                norm_f_with("F32", "f32"),
                is<CheckpointError>,
                {weights, norm_f, "floating-point", "f32"}},
        Refusal{
            "OfNumberedType", norm_f_with("\"F32\"", "32"), is<FormatError>, {weights, norm_f, "dtype with number"}},
        Refusal{"OfTypeInAnArray",
                norm_f_with("\"F32\"", "[\"F32\"]"),
                is<FormatError>,
                {weights, norm_f, "dtype with an array"}},
        Refusal{"OfNullType", norm_f_with("\"F32\"", "null"), is<FormatError>, {weights, norm_f, "dtype with null"}},
        Refusal{"WithoutType", norm_f_with(type + ",", ""), is<FormatError>, {weights, norm_f, "no \"dtype\""}},
        Refusal{"WithoutShape", norm_f_with(shape + ",", ""), is<FormatError>, {weights, norm_f, "no \"shape\""}},
        Refusal{"WithoutOffsets",
                norm_f_with("," + offsets, ""),
                is<FormatError>,
                {weights, norm_f, "no \"data_offsets\""}},
        Refusal{"WithMore", norm_f_with(type, type + ",\"more\":1"), is<FormatError>, {weights, norm_f, "more"}},
        Refusal{"WithAKeyTwice",
                norm_f_with(type, type + "," + type),
                is<FormatError>,
                {weights, norm_f, "\"dtype\" twice"}},
        Refusal{"IsANumber",
                header_text(entry, "\"" + norm_f + "\":1"),
                is<FormatError>,
                {weights, norm_f, "an object", "number"}},
        Refusal{"IsAnArray",
                header_text(entry, "\"" + norm_f + "\":[1]"),
                is<FormatError>,
                {weights, norm_f, "an object", "array"}},
        Refusal{"HoldsATensor",
                norm_f_with(type, type + ",\"more\":{" + type + "}"),
                is<FormatError>,
                {weights, norm_f, "more with an object"}}),
    name_of_row);

INSTANTIATE_TEST_SUITE_P(
    Shape, RefusedWeights,
    testing::Values(
        Refusal{"Negative", norm_f_with("[8]", "[-8]"), is<FormatError>, {weights, norm_f, "shape"}},
        Refusal{"Fractional", norm_f_with("[8]", "[8.0]"), is<FormatError>, {weights, norm_f, "shape"}},
        Refusal{"Astronomical", norm_f_with("[8]", "[1e300]"), is<FormatError>, {weights, norm_f, "shape"}},
        Refusal{"Infinite", norm_f_with("[8]", "[1e999]"), is<FormatError>, {weights, "JSON"}},
        Refusal{"Text", norm_f_with("[8]", "[\"8\"]"), is<FormatError>, {weights, norm_f, "shape"}},
        Refusal{"Null", norm_f_with("[8]", "null"), is<FormatError>, {weights, norm_f, "shape"}},
        Refusal{"Scalar", norm_f_with("[8]", "8"), is<FormatError>, {weights, norm_f, "shape"}},
        Refusal{"Object", norm_f_with("[8]", "{\"0\":8}"), is<FormatError>, {weights, norm_f, "shape"}},
        Refusal{"Nested", norm_f_with("[8]", "[[8]]"), is<FormatError>, {weights, norm_f, "shape"}},
        Refusal{"Empty", norm_f_with("[8]", "[]"), is<FormatError>, {weights, norm_f, "4 bytes for F32 of shape []"}},
        Refusal{"Zero", norm_f_with("[8]", "[0]"), is<FormatError>, {weights, norm_f, "0 bytes for F32 of shape [0]"}},
        Refusal{"TwoTo63",
                norm_f_with("[8]", "[9223372036854775808]"),
                is<FormatError>,
                {weights, norm_f, "possible size", "9223372036854775808"}},
        Refusal{"TwoTo64", norm_f_with("[8]", "[18446744073709551616]"), is<FormatError>, {weights, norm_f, "shape"}},
        Refusal{"OverflowsToTheRightSize",
                norm_f_with("[8]", "[4611686018427387906,4]"),
                is<FormatError>,
                {weights, norm_f, "possible size"}},
        Refusal{"OverflowsBesideAZero",
                norm_f_with("[8]", "[0,4294967296,4294967296]"),
                is<FormatError>,
                {weights, norm_f, "possible size"}},
        Refusal{"OfManyDimensions",
                norm_f_with("[8]", "[8,1,1,1,1,1,1,1,1]"),
                is<FormatError>,
                {weights, norm_f, "at most 8 dimensions"}}),
    name_of_row);

INSTANTIATE_TEST_SUITE_P(
    Offsets, RefusedWeights,
    testing::Values(
        Refusal{"OutOfRange",
                norm_f_with("[6208,6240]", "[1000000,1000032]"),
                is<FormatError>,
                {weights, norm_f, "6208", "1000000"}},
        Refusal{"AtTheEndOfNumbers",
                norm_f_with("[6208,6240]", "[18446744073709551583,18446744073709551615]"),
                is<FormatError>,
                {weights, norm_f, "6208"}},
        Refusal{"BeyondTheData",
                norm_f_with("[8],\"data_offsets\":[6208,6240]", "[9],\"data_offsets\":[6208,6244]"),
                is<FormatError>,
                {weights, "6244", "6240"}},
        Refusal{"Reversed",
                norm_f_with("[6208,6240]", "[6240,6208]"),
                is<FormatError>,
                {weights, norm_f, "32 bytes", "[6240, 6208]"}},
        Refusal{"Negative", norm_f_with("[6208,6240]", "[-32,0]"), is<FormatError>, {weights, norm_f, "data_offsets"}},
        Refusal{"Fractional",
                norm_f_with("[6208,6240]", "[6208.0,6240]"),
                is<FormatError>,
                {weights, norm_f, "data_offsets"}},
        Refusal{"Astronomical",
                norm_f_with("[6208,6240]", "[6208,1e300]"),
                is<FormatError>,
                {weights, norm_f, "data_offsets"}},
        Refusal{"Text", norm_f_with("[6208,6240]", "\"6208\""), is<FormatError>, {weights, norm_f, "data_offsets"}},
        Refusal{"Three",
                norm_f_with("[6208,6240]", "[6208,6240,6240]"),
                is<FormatError>,
                {weights, norm_f, "2 data_offsets"}},
        Refusal{"One",
                norm_f_with("[6208,6240]", "[6208]"),
                is<FormatError>,
                {weights, norm_f, "2 data_offsets", "found 1"}},
        Refusal{"Overlapping",
                norm_f_with("[6208,6240]", "[6204,6236]"),
                is<FormatError>,
                {weights, norm_f, "6208", "overlap another tensor", "6204"}},
        Refusal{"WithAHole",
                norm_f_with("[6208,6240]", "[6212,6244]"),
                is<FormatError>,
                {weights, norm_f, "6208", "gap", "6212"}},
        Refusal{
            "WithAHoleFirst", header_text("[0,512]", "[4,516]"), is<FormatError>, {weights, "embeddings", "gap", "4"}}),
    name_of_row);

const std::string metadata = R"("__metadata__":{"format":"pt"})";

INSTANTIATE_TEST_SUITE_P(
    Metadata, RefusedWeights,
    testing::Values(
        Refusal{
            "WithANumber", header_text("\"pt\"", "1"), is<FormatError>, {weights, "__metadata__", "texts", "number"}},
        Refusal{"WithAnArray", header_text("\"pt\"", "[\"pt\"]"), is<FormatError>, {weights, "__metadata__", "array"}},
        Refusal{"WithAnObject", header_text("\"pt\"", "{}"), is<FormatError>, {weights, "__metadata__", "object"}},
        Refusal{"IsText",
                header_text(metadata, R"("__metadata__":"pt")"),
                is<FormatError>,
                {weights, "__metadata__", "string"}},
        Refusal{"IsNull",
                header_text(metadata, R"("__metadata__":null)"),
                is<FormatError>,
                {weights, "__metadata__", "null"}},
        Refusal{"IsAnArray",
                header_text(metadata, R"("__metadata__":[])"),
                is<FormatError>,
                {weights, "__metadata__", "array"}},
        Refusal{"Twice",
                header_text(metadata, metadata + "," + metadata),
                is<FormatError>,
                {weights, "__metadata__", "occurs twice"}},
        Refusal{"WithAKeyTwice",
                header_text("\"pt\"", "\"pt\",\"format\":\"pt\""),
                is<FormatError>,
                {weights, "__metadata__", "\"format\" twice"}}),
    name_of_row);

/// A tied model that stores its head as well: the embedding with one number changed, or only its first rows.
Change with_head(const std::string& head_shape, std::size_t changed_element) {
  return [=](const Folder& folder) {
    const std::string file = support::read_text(folder / weights);
    std::uint64_t header = 0;
    std::memcpy(&header, file.data(), sizeof(header));
    std::string head = file.substr(sizeof(header) + header, head_shape == "[16,8]" ? 512 : 256);
    head[4 * changed_element] = static_cast<char>(head[4 * changed_element] ^ 1);
    header_text(entry,
                entry + R"(,"lm_head.weight":{"dtype":"F32","shape":)" + head_shape + R"(,"data_offsets":[6240,)" +
                    std::to_string(6240 + head.size()) + "]}",
                head)(folder);
  };
}

INSTANTIATE_TEST_SUITE_P(TiedHead, RefusedWeights,
                         testing::Values(Refusal{"OfAnotherShape",
                                                 with_head("[8,8]", 0),
                                                 is<CheckpointError>,
                                                 {weights, "lm_head.weight", "[16, 8]", "[8, 8]"}}),
                         name_of_row);

Change without_weights(const std::function<void(const fs::path&)>& make) { return instead_of(weights, make); }

void with_an_adapter(const Folder& folder) {
  fs::create_directory(folder / "lora");
  support::write_text(folder / "lora" / "adapter_config.json", "{}");
}

INSTANTIATE_TEST_SUITE_P(
    File, RefusedWeights,
    testing::Values(
        Refusal{"Absent",
                without_weights(support::make_nothing),
                is<FileError>,
                {weights, "pytorch_model.bin", "none of them"}},
        Refusal{"OnlyPartOfPytorchs",
                without_weights([](const fs::path& path) {
                  support::write_text(path.parent_path() / "pytorch_model.bin", "PK\3\4");
                }),
                is<FormatError>,
                {"pytorch_model.bin", "a directory at its end", "truncated"}},
        Refusal{"AFolder", without_weights(support::make_folder), is<FileError>, {weights, "a folder"}},
        Refusal{"AFifo", without_weights(support::make_fifo), is<FileError>, {weights, "special"}},
        Refusal{"ALinkToItself",
                without_weights(support::make_loop),
                is<FileError>,
                {"/" + weights + ":", "cannot be opened", "symbolic links"}},
        Refusal{"ADanglingLink",
                without_weights(support::make_dangling),
                is<FileError>,
                {"/" + weights + ":", "no such file"}},
        Refusal{"NotThere",
                without_weights(support::make_nothing),
                is<FileError>,
                {"/" + weights, "no such file"},
                weights},
        Refusal{"TheConfigurationInstead",
                write("x", ""),
                is<FileError>,
                {"settings", "give its folder, /"},
                "config.json"},
        Refusal{"ATextInstead",
                write("book.txt", "Once upon a time\n"),
                is<FormatError>,
                {"/book.txt", "safetensors, GGUF or PyTorch's", "a text"},
                "book.txt"},
        Refusal{"AShortTextInstead", write("book", "\xC3\xA9"), is<FormatError>, {"/book", "a text"}, "book"},
        Refusal{"ATextAsWeights", write(weights, "Once upon a time\n"), is<FormatError>, {weights, "a text"}},
        Refusal{"ATextAsGguf",
                write("book.gguf", "Once upon a time\n"),
                is<FormatError>,
                {"/book.gguf", "begins with \"GGUF\""},
                "book.gguf"},
        Refusal{"OtherBytesAsGguf",
                write("x.gguf", std::string("GGUD\3\0\0\0 and more", 17)),
                is<FormatError>,
                {"/x.gguf", "begins with \"GGUF\""},
                "x.gguf"},
        Refusal{
            "AnAdapter", with_an_adapter, is<FileError>, {"this is a LoRA adapter", "--adapter /", "/lora"}, "lora"},
        Refusal{"TheSettingsOfAnAdapter",
                with_an_adapter,
                is<FileError>,
                {"this is a LoRA adapter", "--adapter /", "/lora"},
                "lora/adapter_config.json"},
        Refusal{"AFifoByName",
                [](const Folder& folder) { support::make_fifo(folder / "fifo"); },
                is<FileError>,
                {"/fifo", "special"},
                "fifo"},
        Refusal{"BelowAFile", write("x", ""), is<FileError>, {weights + "/x"}, weights + "/x"}),
    name_of_row);

// What looks odd and is right.
TEST(Loading, UsesAHeadThatDiffersFromTheEmbeddingInOneValue) {
  const Folder folder;
  minimamba::save(support::Model(support::tiny_config()), folder.path());
  with_head("[16,8]", 127)(folder);
  EXPECT_FALSE(load<support::Model>(folder.path()).config().tie_embeddings);
}
TEST(Loading, FollowsLinksAndTakesPaddedHeaders) {
  const Folder folder;
  minimamba::save(support::Model(support::tiny_config()), folder.path());
  header_text("}}", "}}" + std::string(5000, ' '))(folder);
  fs::rename(folder / weights, folder / "blob");
  fs::create_symlink("blob", folder / weights);
  EXPECT_NO_THROW(load<support::Model>(folder.path()));
}

}  // namespace refused_weights_test
