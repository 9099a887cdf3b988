// Loads and saves checkpoints. Needs nlohmann-json in addition to what minimamba/minimamba.hpp needs.
#ifndef MINIMAMBA_IO_HPP
#define MINIMAMBA_IO_HPP

#include "minimamba/minimamba.hpp"

#include "minimamba/io/gguf_writer.hpp"
#include "minimamba/io/load.hpp"
#include "minimamba/io/parameter_file.hpp"
#include "minimamba/io/save.hpp"
#include "minimamba/io/state.hpp"

#endif
