// Models with heads in files: saved and loaded with their labels, task and pooling, refused in words; and data sets in
// files.
#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "minimamba/io/sequence_files.hpp"
#include "minimamba/train/example_files.hpp"
#include "minimamba/train/sequence_trainer.hpp"
#include "support/files.hpp"
#include "support/training.hpp"

namespace sequence_files_test {

using namespace minimamba;
using support::Folder;

using Model = SequenceModel<float>;

SequenceConfig<> classifier() {
  return {.backbone = {.d_model = 8, .n_layer = 2, .vocab_size = 20},
          .pooling = Pooling::mean,
          .labels = {"zebra", "caf\xC3\xA9 \"x\"", "10"}};
}
SequenceConfig<> forecaster() {
  return {.backbone = {.d_model = 8, .n_layer = 1},
          .columns = 3,
          .task = Task::regression,
          .pooling = Pooling::none,
          .targets = 2,
          .quantiles = {0.1, 0.5, 0.9}};
}

void write(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file, std::ios::binary) << text;
}
std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
/// The text with its first `from` replaced.
std::string with(std::string text, const std::string& from, const std::string& to) {
  const auto place = text.find(from);
  EXPECT_NE(place, text.npos) << from;
  return place == text.npos ? text : text.replace(place, from.size(), to);
}

TEST(ASavedSequenceModel, IsLoadedWithItsHead) {
  const Folder folder;
  SequenceConfig<> features{.backbone = {.d_model = 8, .n_layer = 1, .vocab_size = 5}, .task = Task::features};
  for (const SequenceConfig<>& config : {classifier(), forecaster(), features}) {
    const Model model(config, NativeBackend<float>(), 3);
    save(model, folder / "model");
    const auto loaded = load_sequence_model<Model>(folder / "model");
    EXPECT_EQ(loaded.config(), model.config());
    support::expect_identical(support::parameters_of(model), support::parameters_of(loaded));
    const auto wide = load_sequence_model<SequenceModel<double, ReferenceTraining>>(folder / "model");
    EXPECT_EQ(wide.config(), model.config());
  }
  save(Model(classifier()), folder / "half", {.matrices = DType::BF16, .files = {}});
  EXPECT_EQ((load_sequence_model<SequenceModel<float, NativeBackend, bf16>>(folder / "half").config().labels.size()),
            3U);
  using Other = SequenceModel<float, NativeBackend, float, SSD>;
  const Other other({.backbone = {.d_model = 16, .n_layer = 1, .vocab_size = 9, .head_dim = 8}, .labels = {"a", "b"}});
  save(other, folder / "ssd");
  support::expect_identical(support::parameters_of(other),
                            support::parameters_of(load_sequence_model<Other>(folder / "ssd")));
  EXPECT_THROW(load_sequence_model<Model>(folder / "ssd"), ConfigError);
  EXPECT_THROW(load_sequence_model<Other>(folder / "half"), ConfigError);
}

TEST(ASavedSequenceModel, MayHaveManyLabels) {
  const Folder folder;
  SequenceConfig<> config{.backbone = {.d_model = 2, .n_layer = 1, .vocab_size = 8, .d_state = 1}};
  for (int i = 0; i < 30'000; ++i) config.labels.push_back("the label with the number " + std::to_string(i));
  const Model model(config);
  save(model, folder / "model");
  EXPECT_EQ(load_sequence_model<Model>(folder / "model").config(), model.config());
}

TEST(ASavedSequenceModel, IsRefusedIfItIsNone) {
  const Folder folder;
  save(Model(classifier()), folder / "model");
  const std::string good = text_of(folder / "model" / "config.json");
  const auto refused = [&](const std::string& text, const std::string& words) {
    write(folder / "model" / "config.json", text);
    try {
      load_sequence_model<Model>(folder / "model");
      ADD_FAILURE() << words;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  };
  refused(with(good, "MinimambaSequenceModel", "MambaForCausalLM"), "config.json: architectures");
  refused(with(good, "\"mean\"", "\"median\""), "config.json: minimamba_pooling");
  refused(with(good, "single_label", "multi_label"), "config.json: problem_type");
  refused(with(good, "\"1\": ", "\"4\": "), "config.json: id2label");
  refused(with(good, "\"zebra\": 0", "\"zebra\": 1"), "config.json: label2id");
  refused(with(good, "\"num_labels\": 3", "\"num_labels\": 4"), "config.json: num_labels");
  refused(with(good, "\"minimamba_columns\": 0", "\"minimamba_columns\": -1"), "config.json: minimamba_columns");
  refused(with(good, "\"hidden_size\": 8", "\"hidden_size\": 0"), "config.json: hidden_size");
  write(folder / "model" / "config.json", with(good, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"));
  EXPECT_THROW(load_sequence_model<Model>(folder / "model"), CheckpointError);
  write(folder / "model" / "config.json", "{");
  EXPECT_THROW(load_sequence_model<Model>(folder / "model"), FormatError);
  EXPECT_THROW(load_sequence_model<Model>(folder / "none"), FileError);
  // A save that fails leaves what was there.
  write(folder / "model" / "config.json", good);
  EXPECT_THROW(save(Model(forecaster()), folder / "model", {.progress = [](double) { return false; }}), CancelledError);
  EXPECT_EQ(load_sequence_model<Model>(folder / "model").config().labels, classifier().labels);
}

TEST(ASavedSequenceModel, IsRefusedIfAWeightIsNotFinite) {
  const Folder folder;
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Model model(classifier());
    const std::vector<float> spoiled(model.head.weight.cols(), value);
    model.head.weight.upload(model.backend(), 1, {spoiled.data(), 1, spoiled.size()});
    save(model, folder / "model");
    try {
      load_sequence_model<Model>(folder / "model");
      ADD_FAILURE() << value;
    } catch (const CheckpointError& error) {
      EXPECT_NE(std::string(error.what()).find("model.safetensors: head.weight: expected finite values"),
                std::string::npos)
          << error.what();
    }
  }
}

ByteSource bytes_of(const std::string& text) { return {std::as_bytes(std::span(text)), "data"}; }

template <class Read>
void expect_format_error(Read&& read, const std::string& subject) {
  try {
    read();
    ADD_FAILURE() << subject;
  } catch (const FormatError& error) {
    EXPECT_EQ(error.subject(), subject) << error.what();
  }
}

TEST(LabelledLines, AreReadWhenTheyAreAskedFor) {
  const Folder folder;
  std::string text;
  for (int i = 0; i < 30000; ++i) {
    text += "{\"label\": " + std::string(i % 3 == 0 ? "\"b\"" : "7") + ", \"text\": \"" + std::to_string(i) +
            std::string(static_cast<std::size_t>(i % 100), 'x') + "\"}" +
            (i % 5 == 0   ? "\r\n"
             : i % 7 == 0 ? "\n\n"
                          : "\n");
  }
  text += "{\"text\": \"" + std::string(20000, 'y') + "\", \"label\": \"b\"}";  // without an end of line
  write(folder / "lines", text);
  const LabelledLines lines(ByteSource::open(folder / "lines"), byte_tokens);
  EXPECT_EQ(lines.size(), 30001U);
  EXPECT_EQ(lines.labels(), (std::vector<std::string>{"7", "b"}));
  SequenceBatch batch;
  for (const std::size_t i : {30000U, 12345U, 0U}) lines.append(i, batch);
  EXPECT_EQ(batch.lengths, (std::vector<std::int64_t>{20000, 50, 1}));
  EXPECT_EQ(batch.labels, (std::vector<std::int32_t>{1, 1, 1}));
  EXPECT_EQ(batch.tokens[20000], '1');
  EXPECT_EQ(lines.label(1), 0);
  EXPECT_EQ(lines.fingerprint(), LabelledLines(bytes_of(text), byte_tokens).fingerprint());
  EXPECT_NE(lines.fingerprint(), LabelledLines(bytes_of(text + "\n" + text), byte_tokens).fingerprint());
  EXPECT_NE(lines.fingerprint(), LabelledLines(bytes_of(text), byte_tokens, {"b", "7"}).fingerprint());
  const auto shifted = [](std::string_view part) {
    auto tokens = byte_tokens(part);
    for (std::int32_t& token : tokens) ++token;
    return tokens;
  };
  EXPECT_NE(lines.fingerprint(), LabelledLines(bytes_of(text), shifted).fingerprint());
}

TEST(LabelledLines, AreRefusedByTheirLine) {
  const std::string good = "{\"text\": \"a\", \"label\": \"x\"}\n";
  const auto refused = [&](const std::string& line) {
    const std::string text = good + "\n" + line + "\n" + good;
    expect_format_error([&] { LabelledLines(bytes_of(text), byte_tokens, {"x", "y"}); }, "data: line 3");
  };
  refused("{\"text\": \"\", \"label\": \"x\"}");
  refused("{\"text\": \"a\", \"label\": \"z\"}");
  refused("{\"text\": \"a\"}");
  refused("{\"label\": \"x\"}");
  refused("{\"text\": 1, \"label\": \"x\"}");
  refused("{\"text\": \"a\", \"label\": [1]}");
  refused("[1]");
  refused("{\"text\": ");
  refused("{\"text\": \"a\", \"text\": \"b\", \"label\": \"x\"}");
  refused("{\"text\": \"\xFF\", \"label\": \"x\"}");
  EXPECT_THROW(LabelledLines(bytes_of(good), byte_tokens, {"x", "x", "y"}), ArgumentError);
  const std::string endless = good + "{\"text\": \"" + std::string(18'000'000, 'a');
  expect_format_error([&] { LabelledLines(bytes_of(endless), byte_tokens, {"x", "y"}); }, "data: line 2");
}

TEST(LabelledWords, HaveALabelAfterTheLastTokenOfEach) {
  const Folder folder;
  std::string text = "\n{\"tokens\": [\"a\", \"bcd\"], \"labels\": [\"y\", 3]}\n";
  for (int i = 0; i < 20'000; ++i) text += "{\"labels\": [\"y\"], \"tokens\": [\"word" + std::to_string(i) + "\"]}\r\n";
  write(folder / "words", text);
  const LabelledWords words(ByteSource::open(folder / "words"), byte_tokens);
  EXPECT_EQ(words.size(), 20'001U);
  EXPECT_EQ(words.labels(), (std::vector<std::string>{"3", "y"}));
  SequenceBatch batch;
  for (const std::size_t i : {20'000U, 0U}) words.append(i, batch);
  EXPECT_EQ(batch.lengths, (std::vector<std::int64_t>{9, 5}));
  EXPECT_EQ(std::vector<std::int32_t>(batch.tokens.end() - 5, batch.tokens.end()),
            (std::vector<std::int32_t>{'a', ' ', 'b', 'c', 'd'}));
  std::vector<std::int32_t> expected(14, ignored_target);
  expected[8] = expected[9] = 1, expected[13] = 0;
  EXPECT_EQ(batch.labels, expected);
  EXPECT_EQ(words.fingerprint(), LabelledWords(bytes_of(text), byte_tokens).fingerprint());
  EXPECT_NE(words.fingerprint(), LabelledWords(bytes_of(text), byte_tokens, {"y", "3"}).fingerprint());
}

TEST(LabelledWords, AreRefusedByTheirLine) {
  const auto refused = [&](const std::string& line) {
    const std::string text = "{\"tokens\": [\"a\"], \"labels\": [\"x\"]}\n" + line + "\n";
    expect_format_error([&] { LabelledWords(bytes_of(text), byte_tokens, {"x", "y"}); }, "data: line 2");
  };
  refused("{\"tokens\": [\"a\", \"b\"], \"labels\": [\"x\"]}");
  refused("{\"tokens\": [\"\"], \"labels\": [\"x\"]}");
  refused("{\"tokens\": [], \"labels\": []}");
  refused("{\"tokens\": [\"a\"], \"labels\": [\"z\"]}");
  refused("{\"tokens\": [1], \"labels\": [\"x\"]}");
  refused("{\"tokens\": \"a\", \"labels\": [\"x\"]}");
  refused("{\"tokens\": [\"a\"]}");
  refused("[\"a\"]");
}

TEST(LabelledWords, TrainATaggerWhichIsSavedAndLoaded) {
  std::string text;
  for (int i = 0; i < 100; ++i) {
    text += std::string("{\"tokens\": [\"the\", \"") + (i % 2 == 0 ? "cat" : "dog") +
            "\", \"runs\"], \"labels\": [\"D\", " + (i % 2 == 0 ? "\"C\"" : "\"G\"") + ", \"V\"]}\n";
  }
  using Trained = SequenceModel<float, NativeTraining>;
  LabelledWords words(bytes_of(text), byte_tokens);
  SequenceBatch all;
  for (std::size_t i = 0; i < 10; ++i) words.append(i, all);
  SequenceConfig<> config{
      .backbone = {.d_model = 16, .n_layer = 1, .vocab_size = 256}, .pooling = Pooling::none, .labels = words.labels()};
  Trainer trainer(Trained(config), ShuffledExamples(std::move(words), 0.2),
                  {.batch = 8, .schedule = {.max_lr = 2e-2, .steps = 40}});
  while (!trainer.ended()) trainer.step();
  EXPECT_LT(trainer.validate(10), 0.1);
  const Folder folder;
  save(trainer.model(), folder / "tagger");
  const auto loaded = load_sequence_model<Model>(folder / "tagger");
  EXPECT_EQ(loaded.config().labels, (std::vector<std::string>{"C", "D", "G", "V"}));
  auto cache = loaded.make_cache(10);
  const auto logits = loaded.forward(all.tokens, all.lengths, cache);
  ASSERT_EQ(logits.rows(), all.labels.size());
  for (std::size_t i = 0; i < logits.rows(); ++i) {
    if (all.labels[i] == ignored_target) continue;
    const auto row = logits.row(i);
    EXPECT_EQ(std::max_element(row.begin(), row.end()) - row.begin(), all.labels[i]) << i;
  }
}

TEST(LabelledLines, MayHaveLongTexts) {
  const std::string text = "{\"label\": \"x\", \"text\": \"" + std::string(2'000'000, 'q') + "\"}\n";
  const LabelledLines lines(bytes_of(text), byte_tokens);
  SequenceBatch batch;
  lines.append(0, batch);
  EXPECT_EQ(batch.tokens.size(), 2'000'000U);
  const std::string longer = "\n\n" + std::string(17'000'000, ' ') + "\n";
  expect_format_error([&] { LabelledLines(bytes_of(longer), byte_tokens); }, "data: line 3");
}

TEST(ACsvFile, IsATable) {
  const std::string text = "\xEF\xBB\xBF\"date\",\"a, b\",c\r\n1958,1.5,-2e3\r\n\n1959,\" +7 \",0\n1960,3,4";
  const Table table = read_csv(bytes_of(text), {.columns = {"c", "a, b"}});
  EXPECT_EQ(table.names, (std::vector<std::string>{"c", "a, b"}));
  EXPECT_EQ(table.values, (std::vector<double>{-2000, 1.5, 0, 7, 4, 3}));
  EXPECT_EQ(table.rows(), 3U);
  EXPECT_EQ(read_csv(bytes_of(text)).columns(), 3U);
  const std::string gaps = "t,y\n1,\n2,5\n3,nan\n4,\n";
  expect_format_error([&] { read_csv(bytes_of(gaps)); }, "data: line 2");
  expect_format_error([&] { read_csv(bytes_of(gaps), {.fill = true}); }, "data: line 2");
  EXPECT_EQ(read_csv(bytes_of(gaps), {.columns = {"t"}}).rows(), 4U);
  const std::string held = "y\n5\nnan\n\nx\n";
  EXPECT_EQ(read_csv(bytes_of(held), {.fill = true}).values, (std::vector<double>{5, 5, 5}));
  const std::string wide = "a,b\n1,2\n1,2,3\n", none, infinite = "a\n1e999\n", open = "a\n\"1\n";
  expect_format_error([&] { read_csv(bytes_of(wide)); }, "data: line 3");
  expect_format_error([&] { read_csv(bytes_of(wide), {.columns = {"c"}}); }, "data: line 1");
  expect_format_error([&] { read_csv(bytes_of(infinite)); }, "data: line 2");
  expect_format_error([&] { read_csv(bytes_of(open)); }, "data: line 2");
  expect_format_error([&] { read_csv(bytes_of(none)); }, "data");
  const std::string twice = "a,b,a\n1,2,3\n", signs = "a\n+-1\n";
  expect_format_error([&] { read_csv(bytes_of(twice)); }, "data: line 1");
  expect_format_error([&] { read_csv(bytes_of(twice), {.columns = {"a"}}); }, "data: line 1");
  EXPECT_EQ(read_csv(bytes_of(twice), {.columns = {"b"}}).values, (std::vector<double>{2}));
  expect_format_error([&] { read_csv(bytes_of(signs)); }, "data: line 2");
}

TEST(LabelledLines, TrainAClassifier) {
  std::string text;
  for (int i = 0; i < 200; ++i) {
    const bool up = i % 2 == 0;
    text += "{\"text\": \"" + std::string(static_cast<std::size_t>(1 + i % 9), up ? 'u' : 'd') + "\", \"label\": \"" +
            (up ? "up" : "down") + "\"}\n";
  }
  using Trained = SequenceModel<float, NativeTraining>;
  ShuffledExamples data(LabelledLines(bytes_of(text), byte_tokens), 0.2);
  SequenceConfig<> config{.backbone = {.d_model = 8, .n_layer = 1, .vocab_size = 256},
                          .labels = data.source().labels()};
  Trainer trainer(Trained(config), std::move(data), {.batch = 8, .schedule = {.max_lr = 1e-2, .steps = 40}});
  while (!trainer.ended()) trainer.step();
  EXPECT_LT(trainer.validate(10), 0.1);
}

}  // namespace sequence_files_test
