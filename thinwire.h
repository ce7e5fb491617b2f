// Everything that a training program needs. See docs/ for the parts.
#pragma once

#include "thinwire/comm/process_group.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codec_table.h"
#include "thinwire/launch/world.h"
#include "thinwire/moe/moe_layer.h"
#include "thinwire/torch_ext/adapter_broadcast.h"
#include "thinwire/torch_ext/distributed_data_parallel.h"
#include "thinwire/torch_ext/lora.h"
#include "thinwire/torch_ext/outer_optimizer.h"
