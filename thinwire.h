// Everything that a training program needs. See docs/ for the parts.
#pragma once

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/backend/split.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/launch/world.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/torch_ext/adapter/adapter_broadcast.h"
#include "thinwire/torch_ext/adapter/lora.h"
#include "thinwire/torch_ext/checkpoint/checkpoint.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"
#include "thinwire/torch_ext/outer/outer_optimizer.h"
