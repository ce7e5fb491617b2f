// Keeps one entry, chosen at random, of each of k = kept_count(density, n) cells that divide the
// tensor as evenly as integers allow: cell j is [⌊j·n/k⌋, ⌊(j+1)·n/k⌋).
//
// The choice follows from seed, step and layer, not from the rank: all ranks keep the same entries,
// no index travels, and payloads (k float32 values) of equal tensors can be summed by an ordinary
// all_reduce. One entry per cell makes every inclusion probability exactly 1 / (cell's size), needs
// neither sorting nor rejection, and has the variance of k independent draws or less.
//
// Default: values as they are, E‖x − C(x)‖² ≈ (1 − k/n)·‖x‖², for use with error feedback.
// unbiased=on: values times their cell's size, E[C(x)] = x, but with n/k − 1 times the energy of x
// as noise, which error feedback must not carry.
//
// A tensor with a NaN or an infinity anywhere has a payload of NaN and decodes to NaN.
//
// Stich et al., "Sparsified SGD with memory", NeurIPS 2018 (rand-k); Konečný & Richtárik,
// "Randomized distributed mean estimation", 2018 (unbiased form).
#pragma once

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

// `randomk(density=0.01, unbiased=off)`
CodecPtr make_randomk(const Spec& spec);

}  // namespace thinwire
