/* A stand-in for CUDA's driver, through which Triton loads and launches kernels: see runtime.c. */
#define _GNU_SOURCE
#include <cuda.h>
#include <string.h>
#include <dlfcn.h>
#include <stdlib.h>
#define API __attribute__((visibility("default")))
static void launched(void){static void(*f)(void);static int t;if(!t){t=1;f=dlsym(RTLD_DEFAULT,"simulated_launch");}if(f)f();}
static int capability(void){const char*c=getenv("SIMULATED_CAPABILITY"); return c?atoi(c):90;}
API CUresult cuInit(unsigned f){return 0;}
API CUresult cuDriverGetVersion(int*v){*v=13000;return 0;}
API CUresult cuDeviceGetCount(int*n){*n=1;return 0;}
API CUresult cuDeviceGet(CUdevice*d,int i){*d=i;return 0;}
API CUresult cuDeviceGetName(char*s,int n,CUdevice d){strncpy(s,"NVIDIA H100 (simulated)",n);return 0;}
API CUresult cuDeviceGetUuid(CUuuid*u,CUdevice d){memset(u,7,sizeof*u);return 0;}
API CUresult cuDevicePrimaryCtxGetState(CUdevice d,unsigned*f,int*a){*f=0;*a=1;return 0;}
API CUresult cuDevicePrimaryCtxRetain(CUcontext*c,CUdevice d){*c=(CUcontext)0x77;return 0;}
API CUresult cuCtxGetCurrent(CUcontext*c){*c=(CUcontext)0x77;return 0;}
API CUresult cuCtxSetCurrent(CUcontext c){return 0;}
API CUresult cuCtxGetDevice(CUdevice*d){*d=0;return 0;}
API CUresult cuCtxPushCurrent_v2(CUcontext c){return 0;}
API CUresult cuCtxPopCurrent_v2(CUcontext*c){return 0;}
API CUresult cuCtxGetLimit(size_t*v,CUlimit l){*v=1<<20;return 0;}
API CUresult cuCtxSetLimit(CUlimit l,size_t v){return 0;}
API CUresult cuCtxSynchronize(void){return 0;}
API CUresult cuDeviceGetAttribute(int*v,CUdevice_attribute a,CUdevice d){switch((int)a){case 1:*v=1024;break;case 2:case 3:*v=1024;break;case 4:*v=64;break;case 5:*v=2147483647;break;case 6:case 7:*v=65535;break;case 8:*v=49152;break;case 10:*v=32;break;case 12:*v=65536;break;case 16:*v=132;break;case 39:*v=2048;break;case 38:*v=50<<20;break;case 75:*v=capability()/10;break;case 76:*v=capability()%10;break;case 81:*v=233472;break;case 82:*v=65536;break;case 97:*v=232448;break;case 106:*v=32;break;case 13:*v=1980000;break;case 36:*v=2619000;break;case 37:*v=5120;break;default:*v=1;}return 0;}
API CUresult cuGetErrorString(CUresult r,const char**s){*s="simulated";return 0;}
API CUresult cuGetErrorName(CUresult r,const char**s){*s="simulated";return 0;}
API CUresult cuModuleLoadData(CUmodule*m,const void*p){*m=(CUmodule)calloc(1,8);return 0;}
API CUresult cuModuleUnload(CUmodule m){return 0;}
API CUresult cuModuleGetFunction(CUfunction*f,CUmodule m,const char*n){*f=(CUfunction)strdup(n);return 0;}
API CUresult cuFuncGetAttribute(int*v,CUfunction_attribute a,CUfunction f){*v=a==CU_FUNC_ATTRIBUTE_NUM_REGS?32:a==CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK?1024:0;return 0;}
API CUresult cuFuncSetAttribute(CUfunction f,CUfunction_attribute a,int v){return 0;}
API CUresult cuFuncSetCacheConfig(CUfunction f,CUfunc_cache c){return 0;}
API CUresult cuLaunchKernel(CUfunction f,unsigned a,unsigned b,unsigned c,unsigned d,unsigned e,unsigned g,unsigned s,CUstream st,void**p,void**x){launched();return 0;}
API CUresult cuLaunchKernelEx(const CUlaunchConfig*c,CUfunction f,void**p,void**x){launched();return 0;}
API CUresult cuOccupancyMaxActiveClusters(int*n,CUfunction f,const CUlaunchConfig*c){*n=1;return 0;}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int*n,CUfunction f,int b,size_t s){*n=2;return 0;}
API CUresult cuPointerGetAttribute(void*d,CUpointer_attribute a,CUdeviceptr p){if(a==CU_POINTER_ATTRIBUTE_DEVICE_POINTER)*(CUdeviceptr*)d=p;else memset(d,0,4);return 0;}
API CUresult cuModuleLoad(CUmodule*m,const char*p){*m=(CUmodule)calloc(1,8);return 0;}
API CUresult cuModuleLoadDataEx(CUmodule*m,const void*p,unsigned n,CUjit_option*o,void**v){*m=(CUmodule)calloc(1,8);return 0;}
