// The few functions of libcuda.so.1 without which libcaffe2_nvrtc.so cannot be loaded. This library
// has the driver's name, so that whoever asks whether there is a driver, and devices, finds them.
#include <cstdint>

#include "thinwire/tests/support/fake_gpu/settings.h"

extern "C" {

int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return 0;
}

int cuCtxGetCurrent(void** context) {
  static char only;
  *context = &only;
  return 0;
}

int cuCtxSetCurrent(void*) {
  return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int) {
  return cuCtxGetCurrent(context);
}

int cuInit(unsigned) {
  return 0;
}

int cuDeviceGetCount(int* count) {
  *count = thinwire::fake_gpu::device_count();
  return 0;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}

int cuGetErrorString(int, const char** text) {
  *text = "the fake GPU has no driver";
  return 0;
}

// CUDA_ERROR_NOT_SUPPORTED
#define THINWIRE_NOT_EMULATED(function) \
  int function() {                      \
    return 801;                         \
  }
THINWIRE_NOT_EMULATED(cuDeviceGetAttribute)
THINWIRE_NOT_EMULATED(cuDriverGetVersion)
THINWIRE_NOT_EMULATED(cuFuncGetAttribute)
THINWIRE_NOT_EMULATED(cuFuncSetAttribute)
THINWIRE_NOT_EMULATED(cuFuncSetCacheConfig)
THINWIRE_NOT_EMULATED(cuGetProcAddress_v2)
THINWIRE_NOT_EMULATED(cuLaunchCooperativeKernel)
THINWIRE_NOT_EMULATED(cuLaunchKernel)
THINWIRE_NOT_EMULATED(cuLinkAddData_v2)
THINWIRE_NOT_EMULATED(cuLinkComplete)
THINWIRE_NOT_EMULATED(cuLinkCreate_v2)
THINWIRE_NOT_EMULATED(cuModuleGetFunction)
THINWIRE_NOT_EMULATED(cuModuleLoad)
THINWIRE_NOT_EMULATED(cuModuleLoadData)
THINWIRE_NOT_EMULATED(cuModuleLoadDataEx)
THINWIRE_NOT_EMULATED(cuModuleUnload)
THINWIRE_NOT_EMULATED(cuOccupancyMaxActiveBlocksPerMultiprocessor)
THINWIRE_NOT_EMULATED(cuPointerGetAttribute)
THINWIRE_NOT_EMULATED(cuTensorMapEncodeTiled)
#undef THINWIRE_NOT_EMULATED
}
