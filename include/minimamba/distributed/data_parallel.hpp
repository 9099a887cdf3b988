// Training by several ranks, each of which computes the gradients of some of a step's micro-batches.
//
//   minimamba::Trainer trainer(std::move(model), tokens, {.micro_batches = 8, ...});  // the same on each rank
//   minimamba::DataParallel together(minimamba::MpiCommunicator(MPI_COMM_WORLD));
//   while (!trainer.ended()) trainer.step(together);
//   together.on_first(trainer, [&] { save_training(trainer, file); });
//
// The bits of the weights are those of one rank with as many micro-batches: see train/micro_batches.hpp. It is not part
// of distributed.hpp, for it includes the trainer.
#ifndef MINIMAMBA_DISTRIBUTED_DATA_PARALLEL_HPP
#define MINIMAMBA_DISTRIBUTED_DATA_PARALLEL_HPP

#include <algorithm>
#include <any>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/hash.hpp"
#include "minimamba/distributed/communicator.hpp"
#include "minimamba/distributed/in_background.hpp"
#include "minimamba/distributed/same_training.hpp"
#include "minimamba/distributed/sum_in_tree.hpp"
#include "minimamba/train/trainer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

enum class Reduction {
  tree,  // the bits depend on the number of micro-batches alone
  sum  // each rank adds its gradients one after another, and the communicator adds those: the bits depend on the ranks
};

struct DataParallelOptions {
  Reduction reduction = Reduction::tree;
  /// Gradients of a layer travel while those before it are computed: for slow networks. DataParallel::overlaps says
  /// whether they can.
  bool overlap = false;
  bool divide_moments = false;     // each rank has the moments of some parameters, updates these and sends them to all
  std::int64_t check_every = 100;  // steps after which ranks compare their weights; 0: only before the first
};

/// For Trainer::step and Trainer::validate of one trainer, which each rank calls as often. What any of these throws,
/// but for DivergedError, RanksDifferError and what on_first() passes on, leaves the other ranks waiting: end the job.
template <Communicator C>
class DataParallel {
 public:
  explicit DataParallel(C ranks, DataParallelOptions options = {}) : ranks_(std::move(ranks)), options_(options) {
    if (options.check_every < 0) {
      throw ArgumentError("DataParallelOptions.check_every", "at least 0", std::to_string(options.check_every));
    }
  }

  const C& communicator() const { return ranks_; }
  /// Whether it holds on one of the ranks.
  bool any(bool here) const {
    const std::array<std::uint8_t, 1> own{static_cast<std::uint8_t>(here)};
    const auto all = detail::all_gather(ranks_, std::span<const std::uint8_t>(own));
    return std::find(all.begin(), all.end(), std::uint8_t{1}) != all.end();
  }
  /// Calls body() on rank 0, with all moments in its memory, while the others wait. What it throws there, an Error with
  /// the same message tells the others.
  template <class Trainer, class Body>
  void on_first(Trainer& trainer, Body&& body) {
    collect_moments(trainer);
    std::exception_ptr failure;
    std::string message;
    try {
      if (rank() == 0) body();
    } catch (const std::exception& error) {
      failure = std::current_exception();
      message = error.what();
    }
    std::array<std::uint64_t, 2> told{failure ? 1U : 0U, message.size()};
    detail::broadcast(ranks_, std::span<std::uint64_t>(told), 0);
    message.resize(static_cast<std::size_t>(told[1]));
    detail::broadcast(ranks_, std::span<char>(message), 0);
    if (failure) std::rethrow_exception(failure);
    if (told[0] != 0) throw Error("rank 0", message);
  }

  // What the trainer calls: see OneRank.

  MicroBatches part(std::size_t all) const { return part_of(rank(), all); }
  bool in_tree() const { return options_.reduction == Reduction::tree; }

  template <class Trainer>
  void begin(Trainer& trainer, std::int64_t step) {
    const auto micro_batches = static_cast<std::size_t>(trainer.options().micro_batches);
    if (micro_batches < size()) {
      throw ArgumentError("TrainerOptions.micro_batches", "at least 1 for each of " + std::to_string(size()) + " ranks",
                          std::to_string(micro_batches));
    }
    if (!begun_ && any(!options_.divide_moments && detail::lacks_moments(trainer))) detail::refuse_some_moments();
    if (size() == 1) return;
    if (!begun_) {
      require_same(trainer);
      parts_.clear();
      for (std::size_t r = 0; r < size(); ++r)
        parts_.push_back(in_tree() ? part_of(r, micro_batches) : MicroBatches{r, r + 1});
      divide(trainer.model());
    } else if (options_.check_every > 0 && step % options_.check_every == 0) {
      require_same(trainer);
    }
    begun_ = true;
    collected_ = false;
    early_ = {};
    AdamW<typename Trainer::ModelType>& optimizer = trainer.mutable_optimizer();
    if (options_.divide_moments && detail::parameters_in(optimizer.mean()) == detail::parameters_in(trainer.model())) {
      optimizer.keep_moments(trainer.model(), [&](std::size_t i) { return owner_of(i) == rank(); });
    }
  }
  template <class T>
  void gather(std::span<T> values, std::size_t each) {
    std::vector<std::size_t> offsets;
    for (std::size_t r = 0; r <= size(); ++r) offsets.push_back(part_of(r, values.size() / each).begin * each);
    detail::all_gather(ranks_, values, std::span<const std::size_t>(offsets));
  }
  template <class Model>
  void add_up(Gradients<Model>& gradients, std::span<const View<typename Model::ScalarType>> sums) {
    if (size() == 1) return;
    wait();
    const Elements early = std::exchange(early_, {});
    with_rows(gradients, sums, [&](auto& rows, std::span<const View<typename Model::ScalarType>> views) {
      for (const auto& [first, last] : {Elements{0, early.first}, {early.second, views.back().cols()}}) {
        std::vector<View<typename Model::ScalarType>> rest;
        for (const auto& view : views) rest.push_back(view.columns(first, last - first));
        if (first < last) add_up_elements(rows, gradients.backend(), rest, first);
      }
    });
  }
  /// Whether steps do what DataParallelOptions::overlap asks for: with several ranks, gradients in the memory of the
  /// processor, and a communicator that a second thread may use (may_change_threads).
  template <class Model>
  bool overlaps(const Model&) const {
    return size() > 1 && options_.overlap && may_overlap<Model>();
  }
  std::pair<std::size_t, std::size_t> elements_of_layer(std::size_t layer) const {
    return layer < layers_.size() ? layers_[layer] : std::pair<std::size_t, std::size_t>();
  }
  template <class Scalar>
  void add_up_in_background(std::vector<View<Scalar>> sums, std::size_t begin) {
    const std::size_t end = begin + sums.back().cols();
    early_ = {begin, early_.first == early_.second ? end : early_.second};
    if (!background_) background_ = std::make_shared<detail::InBackground>();
    auto& rows = rows_of<detail::HostRowsOf<C, Scalar>>();
    background_->add([this, &rows, begin, sums = std::move(sums)] { add_up_elements(rows, nullptr, sums, begin); });
  }
  void wait() {
    if (background_) background_->wait();
  }
  void gather_squares(std::span<double> squares) {
    if (size() == 1 || !options_.divide_moments) return;
    detail::all_gather(ranks_, squares, std::span<const std::size_t>(parameters_));
  }
  bool validates(std::size_t i) const { return i % size() == rank(); }
  template <class T>
  void gather_validated(std::span<T> values) {
    const auto all = detail::all_gather(ranks_, std::span<const T>(values));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = all[i % size() * values.size() + i];
  }
  /// The memory of the gradients, which are no longer needed, carries the parameters.
  template <class Model>
  void share(Model& model, Gradients<Model>& gradients) {
    if (size() == 1 || !options_.divide_moments) return;
    using Scalar = typename Model::ScalarType;
    const auto& backend = model.backend();
    const auto copy = [&](auto& from, auto& to) {
      backend.copy(View<const Scalar>(detail::elements_of(backend, from)), detail::elements_of(backend, to));
    };
    std::size_t i = 0;
    for_each_trainable(
        [&](std::string_view, auto& weight, auto& gradient) {
          if (owner_of(i++) == rank()) copy(weight, gradient);
        },
        model, gradients);
    with_rows(gradients, std::array{gradients.memory()}, [&](auto& rows, std::span<const View<Scalar>> views) {
      detail::all_gather(rows, views.back(), std::span<const std::size_t>(shares_));
    });
    i = 0;
    for_each_trainable(
        [&](std::string_view, auto& weight, auto& gradient) {
          if (owner_of(i++) != rank()) copy(gradient, weight);
        },
        model, gradients);
    gradients.set_zero();
  }

 private:
  using Elements = std::pair<std::size_t, std::size_t>;

  std::size_t rank() const { return static_cast<std::size_t>(ranks_.rank()); }
  std::size_t size() const { return static_cast<std::size_t>(ranks_.size()); }
  MicroBatches part_of(std::size_t of, std::size_t all) const { return {of * all / size(), (of + 1) * all / size()}; }

  /// Calls body(rows, views) with these numbers of the backend where messages can take them: where they are, or on the
  /// host, from which the last are written back.
  template <class Model, class Body>
  void with_rows(Gradients<Model>& gradients, std::span<const View<typename Model::ScalarType>> views, Body&& body) {
    using Scalar = typename Model::ScalarType;
    using Backend = typename Model::BackendType;
    const Backend& backend = gradients.backend();
    if constexpr (requires { ranks_.reaches(backend); }) {
      if (ranks_.reaches(backend)) return body(rows_of<detail::DeviceRowsOf<C, Backend>>(backend), views);
    }
    auto& rows = rows_of<detail::HostRowsOf<C, Scalar>>();
    if constexpr (!BackendTraits<Backend>::on_device) {
      body(rows, views);
    } else {
      std::vector<std::vector<Scalar>> copies;
      std::vector<View<Scalar>> host;
      for (const View<Scalar>& view : views) {
        std::vector<Scalar>& copy = copies.emplace_back(view.cols());
        host.emplace_back(copy.data(), 1, copy.size());
        backend.download(view.data(), std::span(copy));
      }
      body(rows, std::span<const View<Scalar>>(host));
      backend.upload(std::span<const Scalar>(copies.back()), views.back().data());
    }
  }
  /// Messages from a second thread need memory that is written when a kernel returns.
  template <class Model>
  bool may_overlap() const {
    if constexpr (BackendTraits<typename Model::BackendType>::on_device) {
      return false;
    } else if constexpr (requires { ranks_.may_change_threads(); }) {
      return ranks_.may_change_threads();
    } else {
      return false;
    }
  }

  /// The sums over all ranks of elements from `begin` on, or of this rank's share of them.
  template <class Rows, class Backend, class Scalar>
  void add_up_elements(Rows& rows, const Backend& backend, const std::vector<View<Scalar>>& sums, std::size_t begin) {
    if (!in_tree() && !options_.divide_moments && sum_plainly(rows, backend, sums.back())) return;
    const std::size_t count = sums.back().cols();
    std::vector<std::size_t> shares;
    for (std::size_t r = 0; r <= size(); ++r) {
      shares.push_back(options_.divide_moments ? std::clamp(shares_[r], begin, begin + count) - begin
                                               : std::min(count, detail::whole_lines<Scalar>(r * count / size())));
    }
    detail::SumInTree(rows, parts_, shares, sums).run();
    if (!options_.divide_moments) detail::all_gather(rows, sums.back(), std::span<const std::size_t>(shares));
  }

  /// Kept between steps, for its memory.
  template <class Rows, class... Backend>
  Rows& rows_of(const Backend&... backend) {
    const auto* kept = std::any_cast<std::shared_ptr<Rows>>(&rows_);
    if (kept == nullptr) kept = &rows_.emplace<std::shared_ptr<Rows>>(std::make_shared<Rows>(ranks_, backend...));
    return **kept;
  }
  /// The sum that the communicator has itself. Returns false if it has none.
  template <class Rows, class Backend, class Scalar>
  bool sum_plainly(const Rows&, const Backend& backend, View<Scalar> values) const {
    if constexpr (!std::is_same_v<Rows, detail::HostRowsOf<C, Scalar>>) {
      if constexpr (requires { ranks_.sum(backend, values); }) return ranks_.sum(backend, values), true;
    } else if constexpr (requires { ranks_.sum(std::span<Scalar>()); }) {
      return ranks_.sum(std::span<Scalar>(values.data(), values.cols())), true;
    }
    return false;
  }

  /// Divides the memory of the gradients between ranks: equally, or by whole parameters.
  template <class Model>
  void divide(const Model& model) {
    using Scalar = typename Model::ScalarType;
    std::vector<std::size_t> begins{0};  // of each parameter
    layers_.clear();
    for_each_trainable(
        [&](std::string_view name, const auto& parameter) {
          const std::size_t begin = begins.back();
          begins.push_back(begin + detail::whole_lines<Scalar>(parameter.memory_size(model.backend())));
          constexpr std::string_view prefix = "layers.";
          if (!name.starts_with(prefix)) return;
          std::size_t layer = 0;
          for (const char x : detail::layer_of(name).substr(prefix.size())) {
            layer = 10 * layer + static_cast<std::size_t>(x - '0');
          }
          if (layers_.size() <= layer) layers_.resize(layer + 1, {begin, begin});
          layers_[layer].second = begins.back();
        },
        model);
    const std::size_t all = begins.back();
    shares_.assign(1, 0);
    parameters_.assign(1, 0);
    for (std::size_t r = 1; r < size(); ++r) {
      std::size_t next = parameters_.back();
      const std::size_t end = r * all / size();  // a parameter belongs to the share that its middle is in
      while (next + 1 < begins.size() && begins[next] + begins[next + 1] < 2 * end) ++next;
      parameters_.push_back(next);
      shares_.push_back(options_.divide_moments ? begins[next] : std::min(all, detail::whole_lines<Scalar>(end)));
    }
    parameters_.push_back(begins.size() - 1);
    shares_.push_back(all);
  }
  /// The rank that has the moments of a parameter.
  std::size_t owner_of(std::size_t parameter) const {
    std::size_t r = 0;
    while (parameters_[r + 1] <= parameter) ++r;
    return r;
  }

  /// Gives rank 0 the moments of all, if they are divided.
  template <class Trainer>
  void collect_moments(Trainer& trainer) {
    using Model = typename Trainer::ModelType;
    if (!begun_ || !options_.divide_moments || std::exchange(collected_, true)) return;
    const Model& model = trainer.model();
    AdamW<Model>& optimizer = trainer.mutable_optimizer();
    if (!any(detail::parameters_in(optimizer.mean()) < detail::parameters_in(model))) return;
    if (rank() != 0) {
      send_moments(model, optimizer.mean());
      return send_moments(model, optimizer.variance());
    }
    Gradients<Model> mean(model), variance(model);
    receive_moments(optimizer.mean(), mean);
    receive_moments(optimizer.variance(), variance);
    optimizer.restore(std::move(mean), std::move(variance), optimizer.steps());
  }
  template <class Model>
  void send_moments(const Model& model, const Gradients<Model>& divided) const {
    std::vector<typename Model::ScalarType> values;
    std::size_t i = 0;
    for_each_trainable(
        [&](std::string_view, const auto&, const auto& moment) {
          if (owner_of(i++) != rank()) return;
          values.resize(moment.memory_size(model.backend()));
          model.backend().download(detail::elements_of(model.backend(), moment).data(), std::span(values));
          ranks_.send(std::as_bytes(std::span(values)), 0);
        },
        model, divided);
  }
  template <class Model>
  void receive_moments(const Gradients<Model>& divided, Gradients<Model>& whole) const {
    using Scalar = typename Model::ScalarType;
    const auto& backend = whole.backend();
    std::vector<Scalar> values;
    std::size_t i = 0;
    for_each_trainable(
        [&](std::string_view, auto& moment, const auto& own) {
          const std::size_t owner = owner_of(i++);
          values.resize(moment.memory_size(backend));
          if (owner == 0) {
            backend.download(detail::elements_of(backend, own).data(), std::span(values));
          } else {
            ranks_.receive(std::as_writable_bytes(std::span(values)), static_cast<int>(owner));
          }
          backend.upload(std::span<const Scalar>(values), detail::elements_of(backend, moment).data());
        },
        whole, divided);
  }

  /// Throws RanksDifferError: see distributed/same_training.hpp.
  template <class Trainer>
  void require_same(const Trainer& trainer) const {
    detail::Fnv1a options;
    options.add_value(options_.reduction);
    options.add_value(std::uint64_t{options_.divide_moments});
    options.add_value(std::uint64_t{overlaps(trainer.model())});
    options.add_value(options_.check_every);
    detail::require_same_training(ranks_, trainer, options.value(), !begun_);
  }

  C ranks_;
  DataParallelOptions options_;
  bool begun_ = false;
  bool collected_ = false;                        // rank 0 has all moments, since the last step
  std::vector<MicroBatches> parts_;               // of each rank; with Reduction::sum, one for each
  std::vector<std::size_t> shares_, parameters_;  // where the share of each rank of their memory begins; of them
  std::vector<Elements> layers_;                  // those of each layer
  Elements early_;                                // that were added up during backward
  std::any rows_;                                 // see rows_of: one trainer needs one kind
  std::shared_ptr<detail::InBackground> background_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
