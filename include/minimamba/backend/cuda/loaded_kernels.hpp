// The groups of kernels of a card: which are loaded, and which are on their way.
#ifndef MINIMAMBA_BACKEND_CUDA_LOADED_KERNELS_HPP
#define MINIMAMBA_BACKEND_CUDA_LOADED_KERNELS_HPP

#include <array>
#include <atomic>
#include <cassert>
#include <cstddef>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/backend/cuda/kernel_code.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// The kernels from this one on are in this part of their group.
struct PartBegin {
  std::size_t kernel, part;
};
inline constexpr std::array one_part = {PartBegin{0, 0}};

/// The kernels of a program. Names and parts are constants.
struct KernelGroup {
  Program program;
  std::span<const char* const> kernels;            // their names
  std::function<unsigned(std::size_t)> shared_of;  // the dynamic shared memory of a kernel in bytes
  std::span<const PartBegin> parts = one_part;
  bool may_lack = false;     // code that has none of these kernels will do
  bool is_optional = false;  // others do the same: nothing waits for it
};

/// All calls may come from any thread. Threads wait for one another only where they want the same part of a group. All
/// but wait and unload may throw CudaError.
///
/// What NVRTC refuses is thrown by whatever waits for it, and compiled again by the next call that needs it. Several
/// parts are compiled at once, and what refuses one for a while, such as too little memory, refuses others, too: these
/// are not thrown one after another, but compiled again with the first.
class LoadedKernels {
 public:
  LoadedKernels(const Driver& driver, Card card, Handle context)
      : driver_(driver), card_(std::move(card)), context_(context) {}
  LoadedKernels(const LoadedKernels&) = delete;
  LoadedKernels& operator=(const LoadedKernels&) = delete;

  /// Makes a group known, unless it is. Its kernels can then be launched: what is not there is compiled then.
  void add(const KernelGroup& group, const CudaKernelOptions& options) {
    Loaded& loaded = of(group.program);
    if (loaded.is_known) return;
    const std::lock_guard lock(loaded.mutex);
    if (loaded.is_known) return;
    loaded.group = group;
    loaded.options = options;
    loaded.options.on_compile = {};  // may be gone when a kernel is launched
    loaded.functions.assign(group.kernels.size(), nullptr);
    loaded.part_of.assign(group.kernels.size(), 0);
    for (const PartBegin& begin : group.parts) {
      for (std::size_t i = begin.kernel; i < group.kernels.size(); ++i) loaded.part_of[i] = begin.part;
    }
    loaded.is_known = true;
  }
  bool is_known(Program program) const { return of(program).is_known; }
  /// Begins to make a part of a group ready, and does not wait.
  void begin(const Unit& unit, const CudaKernelOptions& options) {
    Loaded& loaded = of(unit.program);
    Part& part = loaded.parts[unit.part];
    if (part.state == Part::loaded || (part.state == Part::begun && failures_ == 0)) return;
    const std::unique_lock lock(part.mutex, std::try_to_lock);
    if (!lock) return;
    if (part.state == Part::absent) begin(unit, loaded, part, options);
    if (part.state == Part::begun && gpu::is_ready(part.code.compiled) && is_stale(part)) compile(unit, part, options);
  }
  /// Waits until a part of a group is loaded.
  void load(const Unit& unit, const CudaKernelOptions& options) {
    Loaded& loaded = of(unit.program);
    Part& part = loaded.parts[unit.part];
    if (part.state == Part::loaded) return;
    const std::lock_guard lock(part.mutex);
    if (part.state == Part::absent) begin(unit, loaded, part, options);
    if (part.state == Part::begun) finish(unit, loaded, part, options);
  }
  /// Loads all that is on its way, but for what is optional.
  void finish(const CudaKernelOptions& options) {
    for (std::size_t i = 0; i < program_count; ++i) finish(static_cast<Program>(i), options);
  }
  /// Of one group.
  void finish(Program program, const CudaKernelOptions& options) {
    for (std::size_t i = 0; i < parts_of(program); ++i) finish(Unit{program, i}, options);
  }
  /// Of one part.
  void finish(const Unit& unit, const CudaKernelOptions& options) {
    if (on_their_way_ == 0) return;
    const Loaded& loaded = of(unit.program);
    if (loaded.parts[unit.part].state == Part::begun && !loaded.group.is_optional) load(unit, options);
  }
  /// Whether a part was ever begun and could not be loaded, but for optional ones.
  bool has_failed() const { return failures_ > 0; }
  /// Whether load would not wait.
  bool is_ready(const Unit& unit) {
    Part& part = of(unit.program).parts[unit.part];
    if (part.state == Part::loaded) return true;
    const std::unique_lock lock(part.mutex, std::try_to_lock);
    return lock && part.state == Part::begun && gpu::is_ready(part.code.compiled);
  }
  /// Waits for all compilations that were begun.
  void wait() {
    for_each_part([&](const Unit&, Loaded&, Part& part) {
      const std::lock_guard lock(part.mutex);
      if (part.state == Part::begun && !gpu::is_ready(part.code.compiled)) part.code.compiled.wait();
    });
  }

  /// Whether the kernels of a group are there, those that are on their way included.
  bool has(Program program) {
    Loaded& loaded = of(program);
    if (!loaded.is_known) return false;
    for (std::size_t i = 0; i < parts_of(program); ++i) {
      if (loaded.parts[i].state == Part::begun) load({program, i}, loaded.options);
    }
    return loaded.parts[0].state == Part::loaded && loaded.functions.front() != nullptr;
  }
  /// Of a group that is known. Waits until the kernel is there.
  void need(Program program, std::size_t kernel) {
    Loaded& loaded = of(program);
    assert(loaded.is_known && kernel < loaded.functions.size());
    const std::size_t part = loaded.part_of[kernel];
    if (loaded.parts[part].state != Part::loaded) load({program, part}, loaded.options);
  }
  Handle function(Program program, std::size_t kernel) const {
    const Loaded& loaded = of(program);
    assert(kernel < loaded.functions.size() && loaded.functions[kernel] != nullptr);
    return loaded.functions[kernel];
  }
  /// With the card's context current. Waits for the compilations, so that none goes on when nothing needs it.
  void unload() {
    wait();
    for_each_part([&](const Unit&, Loaded&, Part& part) {
      if (part.module != nullptr) driver_.unload_module(std::exchange(part.module, nullptr));
    });
  }

 private:
  struct Part {
    enum State { absent, begun, loaded };
    std::mutex mutex;  // for whoever changes it
    std::atomic<State> state = absent;
    KernelCode code;        // when it is begun
    unsigned failures = 0;  // that there were when that was begun
    Handle module = nullptr;
  };
  struct Loaded {
    std::mutex mutex;  // for whoever makes it known
    std::atomic<bool> is_known = false;
    KernelGroup group = {};
    CudaKernelOptions options;
    std::vector<std::size_t> part_of;  // of each kernel
    std::vector<Handle> functions;
    std::array<Part, most_parts> parts;
  };
  Loaded& of(Program program) { return programs_[static_cast<std::size_t>(program)]; }
  const Loaded& of(Program program) const { return programs_[static_cast<std::size_t>(program)]; }
  template <class Body>
  void for_each_part(Body&& body) {
    for (std::size_t i = 0; i < program_count; ++i) {
      for (std::size_t part = 0; part < parts_of(static_cast<Program>(i)); ++part) {
        body(Unit{static_cast<Program>(i), part}, programs_[i], programs_[i].parts[part]);
      }
    }
  }

  void begin(const Unit& unit, Loaded& loaded, Part& part, const CudaKernelOptions& options) {
    assert(loaded.is_known);
    compile(unit, part, options);
    if (!loaded.group.is_optional) ++on_their_way_;  // first, as finish may look at any time
    part.state = Part::begun;
  }
  void compile(const Unit& unit, Part& part, const CudaKernelOptions& options) const {
    const unsigned failures = failures_;
    part.code = code_of(unit, card_, options, Origin::compiled_before);
    part.failures = failures;
  }
  /// Whether a part that is compiled was refused, and another failure has been thrown since it was begun.
  bool is_stale(const Part& part) const { return part.failures != failures_ && part.code.compiled.get().code.empty(); }
  void finish(const Unit& unit, Loaded& loaded, Part& part, const CudaKernelOptions& options) {
    const auto end = [&](typename Part::State state) {
      part.code = {};
      part.state = state;
      if (!loaded.group.is_optional) --on_their_way_;
    };
    try {
      const CurrentContext current(driver_, context_);
      part.code.compiled.wait();
      if (!loaded.group.is_optional && is_stale(part)) compile(unit, part, options);
      part.module = load_module(unit, part.code, options);
      find_kernels(unit, loaded, part.module);
    } catch (...) {
      if (!loaded.group.is_optional) ++failures_;
      end(Part::absent);  // the next call begins again
      throw;
    }
    end(Part::loaded);
  }
  void find_kernels(const Unit& unit, Loaded& loaded, Handle& module) const {
    for (std::size_t i = 0; i < loaded.functions.size(); ++i) {
      if (loaded.part_of[i] != unit.part) continue;
      const int error =
          find(loaded.functions[i], module, loaded.group.kernels[i], static_cast<int>(loaded.group.shared_of(i)));
      if (error != 0 && loaded.group.may_lack) {
        loaded.functions[i] = nullptr;
      } else if (error != 0) {
        driver_.unload_module(std::exchange(module, nullptr));
        driver_.check(error, loaded.group.kernels[i]);
      }
    }
  }
  /// The code that was found may be of another driver: it is then looked for further.
  Handle load_module(const Unit& unit, KernelCode& code, const CudaKernelOptions& options) const {
    while (true) {
      const Compiled& compiled = code.compiled.get();
      if (compiled.code.empty()) throw CudaError(CudaProblem::compiler, "NVRTC", compiled.refusal);
      Handle module = nullptr;
      const int error = driver_.load_module(&module, compiled.code.c_str());
      if (error == 0) return module;
      if (code.origin == Origin::compiler) driver_.check(error, "loading the kernels");
      const auto next = code.origin == Origin::compiled_before ? Origin::cache : Origin::compiler;
      code = code_of(unit, card_, options, next);
    }
  }
  /// Returns the number of an error, or 0.
  int find(Handle& function, Handle module, const char* name, int shared) const {
    constexpr int max_dynamic_shared_memory = 8, share_of_shared_memory = 9;  // and the rest is cache
    int error = driver_.get_function(&function, module, name);
    if (error == 0 && shared > 0) {
      error = driver_.set_function_attribute(function, max_dynamic_shared_memory, shared);
      if (error == 0) error = driver_.set_function_attribute(function, share_of_shared_memory, 100);
    }
    return error;
  }

  const Driver& driver_;
  const Card card_;
  const Handle context_;
  std::atomic<int> on_their_way_ = 0;   // parts that are begun, but for optional ones
  std::atomic<unsigned> failures_ = 0;  // to load a part, but for optional ones
  std::array<Loaded, program_count> programs_;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
