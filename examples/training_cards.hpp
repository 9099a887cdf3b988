// The ranks of `train` with a card each.
#ifndef MINIMAMBA_EXAMPLES_TRAINING_CARDS_HPP
#define MINIMAMBA_EXAMPLES_TRAINING_CARDS_HPP

#include <minimamba/backend/cuda_training.hpp>
#include <minimamba/distributed/cards.hpp>

#include <string>

#include "training_run.hpp"

namespace training {

template <class Scalar>
struct RanksOn<minimamba::CudaTraining<Scalar>> {
  using Type = minimamba::CardRanks<program::Ranks>;

  /// With links between their cards, if these can be made.
  static Type all(const Arguments& arguments, const minimamba::CudaTraining<Scalar>& backend) {
    const program::Ranks& ranks = program::ranks();
    if (ranks.size() > 1 && arguments.between_cards != "host") {
      try {
        return Type(ranks, minimamba::NcclLinks::open(ranks, backend.device()));
      } catch (const minimamba::LinkError& error) {
        if (arguments.between_cards == "nccl") throw;
        if (ranks.first()) {
          program::print_note(std::string("gradients go by the memory of the host: ") + error.what());
        }
      }
    }
    return Type(ranks);
  }
};

}  // namespace training

#endif
