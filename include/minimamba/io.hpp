// Loading and saving of checkpoints. Needs nlohmann-json besides what minimamba/minimamba.hpp needs.
#ifndef MINIMAMBA_IO_HPP
#define MINIMAMBA_IO_HPP

#include "minimamba/minimamba.hpp"

#include "minimamba/io/checkpoint.hpp"

#endif
