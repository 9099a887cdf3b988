// Nothing but the precompiled header.
#include "support/support.hpp"
