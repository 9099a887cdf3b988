// All public headers, and the principal names without their namespaces: none is ambiguous.
#include ALL_HEADERS

namespace cuda {  // of CUDA's own libraries
using Theirs = int;
}

using namespace minimamba;
using namespace std;

template <class Model>
void use(const Model& model, const filesystem::path& folder) {
  save(model, folder);
  const Model loaded = load<Model>(folder, {.progress = [](double) { return true; }});
  auto cache = loaded.make_cache(1);
  auto copy = cache.clone();
  const vector<int32_t> prompt{1, 2, 3};
  const View<const float> logits = loaded.forward(prompt, cache);
  Sampler sampler({.temperature = 1}, model.config().vocab_size);
  vector<int32_t> tokens{sampler(logits.row(0))};
  for (const auto token : generate(loaded, copy, prompt)) tokens.push_back(token);
  for (const auto token : generate(loaded, copy, prompt, {.max_new_tokens = 2})) tokens.push_back(token);
}

int main() {
  [[maybe_unused]] const cuda::Theirs theirs = 0;
  const MambaConfig config{.d_model = 8, .n_layer = 1, .vocab_size = 16};
  use(Mamba<float>(config), "folder");
  use(Mamba<float, NativeBackend>(config, NativeBackend<float>({.threads = 1})), "folder");
  use(Mamba<float, EigenBackend, bf16>(config), "folder");
  use(Mamba<float, ReferenceBackend, f16>(config), "folder");

  const StateLayout layout = state_layout<S6<float>>(config.resolved());
  InferenceCache<float, ReferenceBackend> cache(layout, ReferenceBackend<float>());
  const Linear<float> linear(1, 2, true);
  const Embedding<float> embedding(1, 2);
  const Conv1d<float> conv1d(1, 2, true);
  const RMSNorm<float> norm(1, 1e-5);
  const S6<float> mixer(config.resolved());
  const MambaBlock<float> block(config.resolved());
  const Segment segment{.first = 0, .length = 1, .slot = 0};
  const Run run{.slot = 0, .tokens = {}};
  Random random(1);
  GenerateOptions options{.seed = static_cast<uint64_t>(random.uniform(0, 1))};
  static_assert(WeightFormat<bf16> && InferenceBackend<NativeBackend<float>>);
  static_assert(DType::F32 == dtype_of<float>() && Format<f16>::block_size == 1);
  try {
    throw ArgumentError("subject", "expected", "found");
  } catch (const Error& error) {
    return error.subject().empty() || segment.length != 1 || run.slot != 0 || available(InstructionSet::best) ? 0 : 1;
  }
}
