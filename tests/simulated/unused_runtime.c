#include <stdio.h>
/* The runtime's functions that torch looks up and never calls here; its header declares them otherwise. */
#define API __attribute__((visibility("default")))
#define UNUSED(name) API int name(void) { fprintf(stderr, "SIMULATED: " #name " does nothing\n"); return 0; }
UNUSED(cudaDeviceSetGraphMemAttribute) UNUSED(cudaGraphAddNode) UNUSED(cudaGraphConditionalHandleCreate)
UNUSED(cudaGraphNodeGetDependencies) UNUSED(cudaIpcCloseMemHandle) UNUSED(cudaIpcGetEventHandle)
UNUSED(cudaIpcGetMemHandle) UNUSED(cudaIpcOpenEventHandle) UNUSED(cudaIpcOpenMemHandle)
UNUSED(cudaKernelSetAttributeForDevice) UNUSED(cudaLibraryGetKernel) UNUSED(cudaLibraryLoadData)
UNUSED(cudaLibraryUnload) UNUSED(cudaMemPoolSetAccess) UNUSED(cudaMemPoolTrimTo)
UNUSED(cudaMemcpy2DAsync)
