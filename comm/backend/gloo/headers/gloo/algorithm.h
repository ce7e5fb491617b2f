// ProcessGroupGloo.hpp includes this header and uses nothing of it. See rendezvous/store.h.
#pragma once
