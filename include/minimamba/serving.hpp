// For programs that serve many sequences, or search among continuations: the scheduler, the prefix cache, packed and
// padded inputs, several samples, beam search and speculative decoding.
#ifndef MINIMAMBA_SERVING_HPP
#define MINIMAMBA_SERVING_HPP

#include "minimamba/minimamba.hpp"

#include "minimamba/generate/beam.hpp"
#include "minimamba/generate/prefix_cache.hpp"
#include "minimamba/generate/scheduler.hpp"
#include "minimamba/generate/several.hpp"
#include "minimamba/generate/speculative.hpp"
#include "minimamba/nn/runs.hpp"

#endif
