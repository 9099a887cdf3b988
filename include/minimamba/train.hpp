// Training: the tape that computes gradients, AdamW, the learning-rate schedule, and a trainer that combines them.
// Programs that only run inference do not need it, so minimamba.hpp does not include it. minimamba/train/checkpoint.hpp
// saves the state of a training run.
#ifndef MINIMAMBA_TRAIN_HPP
#define MINIMAMBA_TRAIN_HPP

#include "minimamba/minimamba.hpp"

#include "minimamba/train/adamw.hpp"
#include "minimamba/train/data.hpp"
#if __has_include(<Eigen/Core>)
#include "minimamba/backend/eigen_training.hpp"
#endif
#include "minimamba/backend/native_training.hpp"
#include "minimamba/backend/reference_training.hpp"
#include "minimamba/train/schedule.hpp"
#include "minimamba/train/tape.hpp"
#include "minimamba/train/trainer.hpp"

#endif
