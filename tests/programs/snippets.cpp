// The code of README.md and docs/*.md that is not a whole program, so that it is compiled too. docs.cmake fails if a
// fragment of a page is not in this file.
#include <minimamba/backend/cuda_training.hpp>
#include <minimamba/cuda.hpp>
#include <minimamba/distributed.hpp>
#include <minimamba/distributed/cards.hpp>
#include <minimamba/distributed/data_parallel.hpp>
#include <minimamba/io.hpp>
#include <minimamba/io/any_model.hpp>
#include <minimamba/io/sequence_files.hpp>
#include <minimamba/io/session_store.hpp>
#include <minimamba/minimamba.hpp>
#include <minimamba/serving.hpp>
#include <minimamba/text.hpp>
#include <minimamba/train.hpp>
#include <minimamba/train/checkpoint.hpp>
#include <minimamba/train/sequence_trainer.hpp>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

// clang-format off
namespace {

void readme_load() {
  const auto checkpoint = minimamba::open_checkpoint("mamba-130m-hf");  // a folder or a file, of any format
  const auto model = minimamba::load<minimamba::Mamba<float, minimamba::NativeBackend, minimamba::q8>>(checkpoint);
  const auto tokenizer = minimamba::find_tokenizer(checkpoint).value();

  auto cache = model.make_cache();
  minimamba::StreamingDecoder decoder(tokenizer);
  const auto prompt = tokenizer.encode("Once upon a time");
  std::printf("Once upon a time");
  for (auto token : minimamba::generate(model, cache, prompt, {.temperature = 0.8, .top_p = 0.95})) {
    std::printf("%s", decoder.push(token).c_str());
  }
  std::printf("%s\n", decoder.finish().c_str());
  minimamba::save(model, "a-copy");  // a folder in the Hugging Face layout; save_gguf writes a file for llama.cpp
}

void inference_stop(const minimamba::Mamba<float>& model, minimamba::Mamba<float>::Cache& cache,
                    minimamba::StreamingDecoder& decoder, const std::vector<std::int32_t>& prompt) {
  const minimamba::GenerateOptions options;
  minimamba::StopStrings stops({"The end"});
  for (const auto token : minimamba::generate(model, cache, prompt, options)) {
    std::printf("%s", stops.push(decoder.push(token)).c_str());  // holds back what may begin a stop string
    if (stops.found()) break;
  }
  std::printf("%s\n", (stops.push(decoder.finish()) + stops.finish()).c_str());
}

void inference_score(const minimamba::Mamba<float>& model, const std::vector<std::int32_t>& tokens) {
  minimamba::Scorer scorer(model);
  scorer.read(tokens);  // as often as the text has pieces
  std::printf("%f nats per token, perplexity %f\n", scorer.score().nats_per_token(), scorer.score().perplexity());
}

void backends_mixer() {
  minimamba::Mamba<float, minimamba::NativeBackend, float, minimamba::SSD> model({.d_model = 64, .n_layer = 2, .vocab_size = 256});
}

void training_heads(std::vector<minimamba::SequenceBatch> examples, const std::vector<std::int32_t>& tokens) {
  using Model = minimamba::SequenceModel<float, minimamba::NativeTraining>;
  Model model({.backbone = {.d_model = 64, .n_layer = 2, .vocab_size = 256}, .labels = {"bad", "good"}});
  minimamba::ShuffledExamples data(minimamba::ExampleList(std::move(examples)), 0.1);  // a tenth to validate on
  minimamba::Trainer trainer(std::move(model), std::move(data), {.batch = 16, .schedule = {.steps = 500}});
  while (!trainer.ended()) trainer.step();
  minimamba::save(trainer.model(), "my-classifier");                                   // minimamba/io/sequence_files.hpp

  const auto classifier = minimamba::load_sequence_model<minimamba::SequenceModel<float>>("my-classifier");
  auto cache = classifier.make_cache(2);
  const auto logits = classifier.forward(tokens, std::vector<std::int64_t>{5, 12}, cache);  // of 5 and 12 tokens: [2, 2]
}

void distributed_training(minimamba::Mamba<float, minimamba::NativeTraining> model, const std::vector<std::int32_t>& tokens,
                          const minimamba::ThreadRanks& ranks) {
  minimamba::Trainer trainer(std::move(model), tokens, {.batch = 8, .length = 256, .micro_batches = 8});  // the same on each rank
  minimamba::DataParallel together(ranks);               // MpiCommunicator(MPI_COMM_WORLD), one of ThreadRanks, or your own
  while (!trainer.ended()) trainer.step(together);
  together.on_first(trainer, [&] { minimamba::save_training(trainer, "training.safetensors"); });
}

void distributed_cards(const minimamba::ThreadRanks& ranks, int rank_on_machine) {
  using Backend = minimamba::CudaTraining<float>;
  const Backend backend({.device = rank_on_machine % Backend::devices()});  // MpiCommunicator::rank_on_machine(), say
  const auto links = minimamba::NcclLinks::open(ranks, backend.device());
  minimamba::DataParallel together(minimamba::CardRanks(ranks, links));
}

void readme_slots(const minimamba::Mamba<float>& model, const std::vector<std::int32_t>& prompt, const std::vector<std::int32_t>& next) {
  auto cache = model.make_cache(3);                                   // three slots
  minimamba::Workspace<minimamba::NativeBackend<float>> work;         // scratch memory, for one call at a time
  const std::vector<minimamba::Run> runs{{.slot = 0, .tokens = prompt}, {.slot = 2, .tokens = next}};
  auto last = model.forward_last(runs, cache, work);                  // one row of logits for each run
  cache.assign(1, cache, 0);                                          // copies the state of slot 0 to slot 1
  cache.reset(2);                                                     // slot 2 starts a new sequence
}

void inference_threads(const std::string& path) {
  auto model = minimamba::load<minimamba::Mamba<float>>(path, {.backend = minimamba::NativeBackend<float>({.threads = 4})});
}

void inference_any(const std::string& path, const std::vector<std::int32_t>& prompt) {
  const auto model = minimamba::AnyModel::load(path, {.weights = "q8", .backend = "native", .threads = 4});
  auto cache = model.make_cache();
  const auto result = minimamba::generate(model, cache, prompt, {.max_new_tokens = 40}).collect();
  std::printf("%s weights, %zu bytes\n", std::string(model.weight_format()).c_str(), model.memory_bytes());
}

void inference_bytes(const minimamba::Mamba<float>& model, const minimamba::Mamba<float>::Cache& session) {
  std::vector<std::byte> bytes;
  minimamba::save_state(model, session, [&](std::span<const std::byte> piece) { bytes.insert(bytes.end(), piece.begin(), piece.end()); });
  auto back = minimamba::load_state(minimamba::ByteSource(bytes, "session 7"), model);  // the name is for error messages
}

void serving_prefixes(const minimamba::Mamba<float>& model, const std::vector<std::int32_t>& system_and_question, std::size_t system_tokens) {
  minimamba::Scheduler scheduler(model, {.slots = 16, .prefix_cache_bytes = std::size_t{1} << 30});
  scheduler.submit({.prompt = system_and_question, .shared_tokens = system_tokens});
}

void serving_conversation(minimamba::Scheduler<minimamba::Mamba<float>>& scheduler, const std::vector<std::int32_t>& turn) {
  minimamba::RequestResult<minimamba::Mamba<float>::Cache> kept;
  scheduler.submit({.prompt = turn, .on_end = [&](auto& result) { kept = std::move(result); }, .start = kept.state, .keep_state = true});
}

void serving_sessions(const minimamba::Mamba<float>& model, const minimamba::RequestResult<minimamba::Mamba<float>::Cache>& kept) {
  minimamba::SessionStore store(model, {.max_bytes = std::size_t{1} << 30, .folder = "sessions"});
  store.put("alice", {.state = kept.state, .sections = {{"unread", "42"}}});
  if (const auto session = store.get("alice")) std::printf("%lld tokens\n", static_cast<long long>(session->state->position()));
}

void serving_runs(const minimamba::Mamba<float>& model, minimamba::Mamba<float>::Cache& cache, const std::vector<std::int32_t>& tokens,
                  const std::vector<std::int32_t>& rows, const std::vector<std::int64_t>& lengths, const std::vector<std::int64_t>& attention_mask) {
  auto runs = minimamba::packed_runs(tokens, {0, 5, 12});                             // cu_seqlens: sequences of 5 and 7 tokens
  auto padded = minimamba::padded_runs(rows, lengths, minimamba::Padding::left);      // [B, L] tokens, B lengths
  auto masked = minimamba::masked_runs(rows, attention_mask, 4);                      // [4, L] tokens and mask
  const auto logits = model.forward_last(runs, cache);
}

void serving_search(const minimamba::Mamba<float>& model, const std::vector<std::int32_t>& prompt) {
  const auto start = model.make_cache();  // or one that has read something
  const auto samples = minimamba::generate_several(model, start, prompt, 5, {.temperature = 0.9});
  const auto best = minimamba::beam_search(model, start, prompt, {.beams = 8, .best = 3, .max_new_tokens = 50});
  std::printf("%zu tokens, score %f\n", best[0].tokens.size(), best[0].score);
}

void serving_speculation(const minimamba::Mamba<float>& model, const minimamba::Mamba<float>& small_model, minimamba::Mamba<float>::Cache& cache,
                         const std::vector<std::int32_t>& prompt) {
  minimamba::Speculator speculator(model, minimamba::DraftModel(small_model));  // or minimamba::PromptLookup()
  const auto result = speculator.generate(cache, prompt, {.max_new_tokens = 200});
  std::printf("%lld calls\n", static_cast<long long>(speculator.statistics().calls));
}

void gpu_compiled() {
  minimamba::compile_cuda_kernels("kernels", {"sm_80", "sm_90a", "sm_100", "sm_120", "compute_80"});
}
void gpu_logits(const minimamba::Mamba<float, minimamba::CudaBackend>& model, const std::vector<std::int32_t>& tokens) {
  auto cache = model.make_cache();
  const auto logits = model.backend().to_host(model.forward(tokens, cache));  // waits, and copies
  logits.row(0);                                                              // a span, on the host
}

void log(const std::string&) {}
void files_notes() {
  auto model = minimamba::load<minimamba::Mamba<float>>("my-model", {.on_note = [](const std::string& note) { log(note); }});
}

struct Classifier {
  minimamba::RMSNorm<float> norm{512, 1e-5};
  minimamba::Linear<float> head{512, 10, true};

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("norm", self.norm...);
    f("head", self.head...);
  }
};

void saving_parameters(Classifier& classifier, const minimamba::NativeBackend<float>& backend) {
  minimamba::save_parameters(classifier, backend, "classifier.safetensors", {.metadata = {{"labels", "cat, dog"}}});
  minimamba::load_parameters(classifier, backend, "classifier.safetensors");
  auto texts = minimamba::read_safetensors_metadata("classifier.safetensors");
}

using namespace minimamba;

void training_loop(Mamba<float, NativeTraining>& model, Mamba<float, NativeTraining>::Cache& cache,
                   const std::vector<std::int32_t>& tokens, std::int64_t B, double learning_rate) {
  minimamba::Tape tape(model);                       // keeps what backward needs; {.recompute = true} keeps less
  auto gradients = minimamba::zeros_like(model);
  minimamba::AdamW optimizer(model);
  tape.forward(model, tokens, cache);                // tokens [B, L], B from the cache
  tape.backward(model, minimamba::next_token_targets(tokens, B), gradients);
  optimizer.step(model, gradients, learning_rate);   // sets the gradients to zero
}

struct Forecaster {
  Linear<float, NativeTraining> in;   // [D, 1]
  MambaModel<float, NativeTraining> backbone;
  Linear<float, NativeTraining> out;  // [1, D]

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("in", self.in...);
    f("backbone", self.backbone...);
    f("out", self.out...);
  }
  const auto& backend() const { return backbone.backend(); }
  Forecaster shapes() const { return {{1, 64, true}, backbone.shapes(), {64, 1, true}}; }
  void refresh() { backbone.refresh(); }
};

void training_creation() {
  MambaModel<float, NativeTraining> backbone({.d_model = 64, .n_layer = 2});
  Forecaster model = Forecaster{{}, std::move(backbone), {}}.shapes();
  allocate_parameters(model, model.backend());
  initialize_parameters(model, model.backbone.config(), model.backend(), 1);  // seed 1
  model.refresh();
}

void finetuning_parts(std::vector<std::int32_t> tokens) {
  using Plain = Mamba<float, NativeTraining>;
  Plain model({.d_model = 64, .n_layer = 2, .vocab_size = 256});
  freeze(model, {"embedding", "layers.0", "norm_f"});  // parameters whose names contain these words
  Trainer<Plain> trainer(std::move(model), tokens,
                         {.adamw = {.groups = {{.part = "in_proj", .rate = 0.5, .weight_decay = 0.0}}}});
}

void training_step(Forecaster& model, Tape<MambaModel<float, NativeTraining>>& tape, AdamW<Forecaster>& optimizer,
                   MambaModel<float, NativeTraining>::Cache& cache, View<float> series, View<float> x, View<float> y, View<float> d_y,
                   View<float> d_outputs, View<float> d_x, View<float> d_series, double learning_rate) {
  const auto& backend = model.backend();
  auto gradients = zeros_like(model);                                    // in one allocation: gradients.memory()
  model.in.forward(backend, series, x);                                  // layers are called by hand
  const auto outputs = tape.forward(model.backbone, x, cache);
  model.out.forward(backend, outputs, y);                                // then compute the loss and d_y
  model.out.backward(backend, gradients.out, {.x = outputs, .d_y = d_y, .d_x = d_outputs});
  tape.backward(model.backbone, d_outputs, GradientsOf(gradients.backbone), {.d_inputs = d_x});
  model.in.backward(backend, gradients.in, {.x = series, .d_y = d_x, .d_x = d_series});
  optimizer.step(model, gradients, learning_rate);
}

}  // namespace
