// A backend whose ranks read one sequence together: each has a part of the rows, and at the two places where a row
// depends on rows before it, the convolution and the scan, the ranks exchange what they need.
//
//   using Ranks = OverRanks<NativeBackend, MpiCommunicator>;
//   Mamba<float, Ranks::Backend> model = ...;         // prefill(model, tokens, cache): distributed/prefill.hpp
//
// The convolution of a rank begins with the last K - 1 rows of the ranks before it. The scan of a part takes a state h
// to P h + S, where P = exp(A sum_t dt[t]) and S is the result of a scan from zero. Each rank scans its part from zero,
// the ranks combine (P, S) by an exclusive scan, and each then scans its part from the state before it. So all but the
// first and the last rank scan twice. Within a call, rows are read by the kernels of Base; outside of prefill the
// backend is Base.
//
// The states of one machine are sums of the same terms in another order: the results differ from its by rounding, see
// docs/distributed.md.
#ifndef MINIMAMBA_DISTRIBUTED_OVER_RANKS_HPP
#define MINIMAMBA_DISTRIBUTED_OVER_RANKS_HPP

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/ssd_concept.hpp"
#include "minimamba/core/view.hpp"
#include "minimamba/distributed/communicator.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Base is a backend on the CPU. A bad_alloc of one rank leaves the others waiting: end the job.
template <template <class> class Base, Communicator Comm>
struct OverRanks {
  template <class Number>
  class Backend : public Base<Number> {
   public:
    using Scalar = Number;
    /// More than on one machine, so that fewer messages are sent.
    static constexpr std::size_t rows_at_once = 1024;

    static_assert(!BackendTraits<Base<Scalar>>::on_device, "Base is a backend on the CPU");

    /// Of one rank: it never divides a sequence.
    explicit Backend(Base<Scalar> base = Base<Scalar>()) : Base<Scalar>(std::move(base)) {}
    Backend(Base<Scalar> base, Comm ranks)
        : Base<Scalar>(std::move(base)), group_(std::make_shared<Group>(std::move(ranks))) {}

    int rank() const { return group_ ? int{group_->ranks.rank()} : 0; }
    int ranks() const { return group_ ? int{group_->ranks.size()} : 1; }

    void causal_conv1d(const Conv1dArguments<Scalar>& p) const {
      if (divides()) exchange_windows(p.x, p.window[p.segments[0].slot]);
      Base<Scalar>::causal_conv1d(p);
    }
    void selective_scan(const ScanArguments<Scalar>& p) const {
      const auto scan = [&] { Base<Scalar>::selective_scan(p); };
      scan_in_turn(p.segments, p.h, scan, [&](View<Scalar> decay) {
        for (std::size_t e = 0; e < decay.rows(); ++e) {
          double sum = 0;
          for (std::size_t t = 0; t < p.delta.rows(); ++t)
            sum += softplus(wide(p.delta(t, e)) + wide(p.delta_bias(0, e)));
          for (std::size_t n = 0; n < decay.cols(); ++n) decay(e, n) = narrow(std::exp(wide(p.a(e, n)) * sum));
        }
      });
    }
    void ssd_scan(const SsdScanArguments<Scalar>& p) const requires HasSsd<Base<Scalar>> {
      const auto scan = [&] { Base<Scalar>::ssd_scan(p); };
      scan_in_turn(p.segments, p.h, scan, [&](View<Scalar> decay) {
        const std::size_t heads = p.a.cols(), size = decay.rows() / heads;
        for (std::size_t head = 0; head < heads; ++head) {
          double sum = 0;
          for (std::size_t t = 0; t < p.delta.rows(); ++t) {
            sum += std::clamp(softplus(wide(p.delta(t, head)) + wide(p.delta_bias(0, head))), p.dt_min, p.dt_max);
          }
          const Scalar whole = narrow(std::exp(wide(p.a(0, head)) * sum));
          for (std::size_t i = head * size; i < (head + 1) * size; ++i) {
            std::fill_n(decay.row(i).data(), decay.cols(), whole);
          }
        }
      });
    }

    /// For prefill. While one exists, each call of forward reads the rows of this rank, of a single sequence.
    class Division {
     public:
      explicit Division(const Backend& backend) : group_(*backend.group_) { group_.divides = true; }
      Division(const Division&) = delete;
      Division& operator=(const Division&) = delete;
      ~Division() { group_.divides = false; }

     private:
      typename Backend::Group& group_;
    };
    /// For prefill. The part of a rank without rows in a layer: it hands on what the others exchange, and its own state
    /// becomes that after the ranks before it.
    void exchange_nothing(View<Scalar> window, View<Scalar> h) const {
      exchange_windows(View<const Scalar>(nullptr, 0, window.rows()), window);
      if (rank() > 0) clear(h);
      combine(h, [](View<Scalar>) {});
    }
    const Comm& communicator() const { return group_->ranks; }

   private:
    struct Group {
      explicit Group(Comm of) : ranks(std::move(of)) {}

      Comm ranks;
      bool divides = false;
      std::vector<DecayAndState<Scalar>> values;  // [E, N]
      std::vector<Scalar> decays, window;         // [E, N], [E, K - 1]
    };

    bool divides() const { return group_ && group_->divides; }
    static double wide(Scalar x) { return static_cast<double>(x); }
    static Scalar narrow(double x) { return static_cast<Scalar>(x); }
    static double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }
    static void clear(View<Scalar> h) { std::fill_n(h.data(), h.rows() * h.cols(), Scalar(0)); }

    /// window [E, K - 1], oldest first: becomes the last rows before this rank's rows x [M, E]. The ranks after it get
    /// theirs at once if M is at least K - 1.
    void exchange_windows(View<const Scalar> x, View<Scalar> window) const {
      const std::size_t past = window.cols(), E = window.rows();
      if (past == 0) return;
      const Comm& ranks = group_->ranks;
      const std::span<std::byte> own = std::as_writable_bytes(std::span(window.data(), E * past));
      const bool waits = x.rows() < past, first = ranks.rank() == 0, last = ranks.rank() + 1 == ranks.size();
      if (waits && !first) ranks.receive(own, ranks.rank() - 1);
      if (!last) {
        std::vector<Scalar>& next = group_->window;
        next.resize(E * past);
        for (std::size_t e = 0; e < E; ++e) {
          for (std::size_t j = 0; j < past; ++j) {
            const std::size_t from = x.rows() + j;  // of the window followed by x
            next[e * past + j] = from < past ? window(e, from) : x(from - past, e);
          }
        }
        ranks.send(std::as_bytes(std::span(next)), ranks.rank() + 1);
      }
      if (!waits && !first) ranks.receive(own, ranks.rank() - 1);
    }

    /// decays(P) computes P [E, N] of this rank's rows.
    template <class Scan, class Decays>
    void scan_in_turn(std::span<const Segment> segments, const SlotView<Scalar>& states, Scan&& scan,
                      Decays&& decays) const {
      if (!divides()) return scan();
      assert(segments.size() == 1);
      const View<Scalar> h = states[segments[0].slot];
      const bool first = rank() == 0, last = rank() + 1 == ranks();
      if (first) {  // what it hands on is the state after its rows: P is not needed
        scan();
        return combine(h, [](View<Scalar>) {});
      }
      clear(h);
      if (last) {  // nobody needs its P and S
        combine(h, [](View<Scalar>) {});
      } else {
        scan();
        combine(h, std::forward<Decays>(decays));
      }
      scan();
    }
    /// The exclusive scan of (P, h) over the ranks. But for rank 0, h becomes the state after the ranks before this
    /// one. decays(P) overwrites P = 1.
    template <class Decays>
    void combine(View<Scalar> h, Decays&& decays) const {
      Group& group = *group_;
      const std::size_t size = h.rows() * h.cols();
      group.decays.assign(size, Scalar(1));
      decays(View<Scalar>(group.decays.data(), h.rows(), h.cols()));
      group.values.resize(size);
      for (std::size_t i = 0; i < size; ++i) group.values[i] = {group.decays[i], h.data()[i]};
      detail::exclusive_scan(group.ranks, std::span(group.values));
      if (rank() == 0) return;
      for (std::size_t i = 0; i < size; ++i) h.data()[i] = group.values[i].state;
    }

    std::shared_ptr<Group> group_;  // null: one rank
  };
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
