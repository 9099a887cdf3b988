// Text to token ids and back. Needs nlohmann-json and utf8proc in addition to what minimamba/minimamba.hpp needs.
#ifndef MINIMAMBA_TEXT_HPP
#define MINIMAMBA_TEXT_HPP

#include "minimamba/text/find_tokenizer.hpp"
#include "minimamba/text/tokenizer.hpp"
#include "minimamba/text/stop_strings.hpp"
#include "minimamba/text/tokenizer_json.hpp"

#endif
