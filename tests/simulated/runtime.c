/* A stand-in for CUDA's runtime and cuBLAS: one H100 whose memory is the host's, and which computes nothing.

It counts what it is asked for (`simulated_counts`), refuses what a device refuses while a graph is captured, and prints
each copy and synchronisation where SIMULATED_LOG is set. SIMULATED_CAPABILITY=100 makes it another architecture. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <string.h>
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <stdint.h>
#define API __attribute__((visibility("default")))
typedef cudaError_t E;
static int capability(void){const char*c=getenv("SIMULATED_CAPABILITY"); return c?atoi(c):90;}
static __thread int dev; static __thread E last;
static long n_launch, n_capture, n_replay, n_h2d, n_d2h, n_d2d, n_sync, n_malloc, n_instantiate, n_evsync, n_memset;
static E err(E e){ if(e) last=e; return e; }
/* a registry of allocations */
typedef struct { char*p; size_t n; int host; } A; static A reg[1<<16]; static int nreg; static pthread_mutex_t mu=PTHREAD_MUTEX_INITIALIZER;
static void add(void*p,size_t n,int host){pthread_mutex_lock(&mu); int i=0; for(;i<nreg;i++) if(!reg[i].p) break; if(i==nreg) nreg++; reg[i].p=p; reg[i].n=n; reg[i].host=host; pthread_mutex_unlock(&mu);}
static A find(const void*q){A r={0,0,-1};pthread_mutex_lock(&mu); for(int i=0;i<nreg;i++) if(reg[i].p&&(char*)q>=reg[i].p&&(char*)q<reg[i].p+reg[i].n){r=reg[i];break;} pthread_mutex_unlock(&mu); return r;}
static size_t drop(const void*q){size_t n=0;pthread_mutex_lock(&mu); for(int i=0;i<nreg;i++) if(reg[i].p==(char*)q){n=reg[i].n;reg[i].p=0;break;} pthread_mutex_unlock(&mu); return n;}
static cudaStream_t capturing; static unsigned long long capid; 
static int logging(void){static int v=-1; if(v<0) v=getenv("SIMULATED_LOG")?1:0; return v;}
#define LOG(...) do{ if(logging()) fprintf(stderr,__VA_ARGS__);}while(0)
API void simulated_counts(long*o){o[0]=n_launch;o[1]=n_capture;o[2]=n_replay;o[3]=n_h2d;o[4]=n_d2h;o[5]=n_d2d;o[6]=n_sync;o[7]=n_malloc;o[8]=n_instantiate;o[9]=n_evsync;o[10]=n_memset;}
API void simulated_launch(void){n_launch++;}
API E cudaGetDeviceCount(int*n){*n=1;return 0;}
API E cudaGetDevice(int*d){*d=dev;return 0;}
API E cudaSetDevice(int d){dev=d;return 0;}
API E cudaInitDevice(int d,unsigned f,unsigned g){return 0;}
API E cudaDriverGetVersion(int*v){*v=13000;return 0;}
API E cudaRuntimeGetVersion(int*v){*v=13000;return 0;}
API E cudaGetLastError(void){E e=last;last=0;return e;}
API E cudaPeekAtLastError(void){return last;}
API const char*cudaGetErrorString(E e){return e==900?"operation not permitted when stream is capturing":e?"simulated error":"no error";}
API const char*cudaGetErrorName(E e){return e==900?"cudaErrorStreamCaptureUnsupported":"cudaErrorSimulated";}
API E cudaGetDeviceProperties(struct cudaDeviceProp*p,int d){memset(p,0,sizeof*p); strcpy(p->name,"NVIDIA H100 (simulated)"); p->totalGlobalMem=79ull<<30; p->sharedMemPerBlock=49152; p->regsPerBlock=65536; p->warpSize=32; p->maxThreadsPerBlock=1024;
 p->maxThreadsDim[0]=p->maxThreadsDim[1]=1024;p->maxThreadsDim[2]=64;p->maxGridSize[0]=2147483647;p->maxGridSize[1]=p->maxGridSize[2]=65535;p->totalConstMem=65536;p->major=capability()/10;p->minor=capability()%10;p->multiProcessorCount=132;p->unifiedAddressing=1;p->memoryBusWidth=5120;p->l2CacheSize=50<<20;p->maxThreadsPerMultiProcessor=2048;p->sharedMemPerMultiprocessor=233472;p->regsPerMultiprocessor=65536;p->managedMemory=1;p->sharedMemPerBlockOptin=232448;p->concurrentKernels=1;p->asyncEngineCount=3;p->textureAlignment=512;p->hostRegisterSupported=1;p->memoryPoolsSupported=1;p->pciBusID=1;p->uuid.bytes[0]=7;return 0;}
API E cudaDeviceGetAttribute(int*v,enum cudaDeviceAttr a,int d){ switch((int)a){case 1:*v=1024;break;case 2:case 3:*v=1024;break;case 4:*v=64;break;case 5:*v=2147483647;break;case 6:case 7:*v=65535;break;case 8:*v=49152;break;case 10:*v=32;break;case 12:*v=65536;break;case 16:*v=132;break;case 39:*v=2048;break;case 38:*v=50<<20;break;case 75:*v=capability()/10;break;case 76:*v=capability()%10;break;case 81:*v=233472;break;case 82:*v=65536;break;case 97:*v=232448;break;case 106:*v=32;break;case 13:*v=1980000;break;case 36:*v=2619000;break;case 37:*v=5120;break;default:*v=1;}return 0;}
API E cudaDeviceGetPCIBusId(char*s,int n,int d){strncpy(s,"0000:01:00.0",n);return 0;}
API E cudaDeviceCanAccessPeer(int*v,int a,int b){*v=0;return 0;}
API E cudaDeviceEnablePeerAccess(int a,unsigned f){return 0;}
API E cudaDeviceGetStreamPriorityRange(int*lo,int*hi){*lo=0;*hi=-5;return 0;}
API E cudaMemGetInfo(size_t*f,size_t*t){*t=79ull<<30;*f=78ull<<30;return 0;}
static void*take(size_t n){ if(!n)n=1; void*p=mmap(0,n+(2<<20),PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0); return p==MAP_FAILED?0:p;}
API E cudaMalloc(void**p,size_t n){n_malloc++;*p=take(n); if(!*p) return err(2); add(*p,n+(2<<20),0); LOG("cudaMalloc %zu -> %p\n",n,*p); return 0;}
API E cudaFree(void*p){ if(!p)return 0; size_t n=drop(p); if(n) munmap(p,n); return 0;}
API E cudaMallocAsync(void**p,size_t n,cudaStream_t s){return cudaMalloc(p,n);}
API E cudaFreeAsync(void*p,cudaStream_t s){return cudaFree(p);}
API E cudaHostAlloc(void**p,size_t n,unsigned f){*p=take(n); add(*p,n+(2<<20),1);return 0;}
API E cudaFreeHost(void*p){size_t n=drop(p); if(n) munmap(p,n); return 0;}
API E cudaHostRegister(void*p,size_t n,unsigned f){add(p,n,1);return 0;}
API E cudaHostUnregister(void*p){drop(p);return 0;}
API E cudaHostGetDevicePointer(void**d,void*h,unsigned f){*d=h;return 0;}
API E cudaPointerGetAttributes(struct cudaPointerAttributes*a,const void*p){memset(a,0,sizeof*a);A r=find(p);a->type=r.host<0?0:r.host?1:2;a->devicePointer=(void*)p;a->hostPointer=(void*)p;return 0;}
static E copied(void*d,const void*s,size_t n,cudaStream_t st,int async){A rd=find(d),rs=find(s); int dd=rd.host==0,ds=rs.host==0; 
 if(capturing){ if(!async) {fprintf(stderr,"SIMULATED: synchronous memcpy while capturing\n"); return err(900);} if((!dd&&rd.host<0)||(!ds&&rs.host<0)){fprintf(stderr,"SIMULATED: copy of %zu bytes with pageable host memory while capturing\n",n);return err(900);} }
 if(dd&&ds)n_d2d++; else if(dd){n_h2d++; LOG("SIMULATED h2d %zu pageable=%d\n",n,rs.host<0);} else if(ds){n_d2h++; LOG("SIMULATED d2h %zu\n",n);} 
 memmove(d,s,n); return 0;}
API E cudaMemcpy(void*d,const void*s,size_t n,enum cudaMemcpyKind k){return copied(d,s,n,0,0);}
API E cudaMemcpyAsync(void*d,const void*s,size_t n,enum cudaMemcpyKind k,cudaStream_t st){return copied(d,s,n,st,1);}
API E cudaMemcpyPeerAsync(void*d,int dd,const void*s,int sd,size_t n,cudaStream_t st){memmove(d,s,n);return 0;}
API E cudaMemset(void*p,int v,size_t n){memset(p,v,n);n_memset++;return 0;}
API E cudaMemsetAsync(void*p,int v,size_t n,cudaStream_t s){memset(p,v,n);n_memset++;return 0;}
API E cudaMemcpyToSymbol(const void*s,const void*p,size_t n,size_t o,enum cudaMemcpyKind k){return 0;}
API E cudaGetSymbolAddress(void**p,const void*s){static char buf[1<<20];*p=buf;return 0;}
static E sync_(const char*w){ n_sync++; LOG("SIMULATED sync %s\n",w); if(capturing){fprintf(stderr,"SIMULATED: %s while capturing\n",w);return err(900);} return 0;}
API E cudaDeviceSynchronize(void){return sync_("cudaDeviceSynchronize");}
API E cudaStreamSynchronize(cudaStream_t s){return sync_("cudaStreamSynchronize");}
API E cudaStreamQuery(cudaStream_t s){return 0;}
static uintptr_t next_handle=0x1000; static void*handle(void){void*h=calloc(1,64);return h;}
API E cudaStreamCreate(cudaStream_t*s){*s=handle();return 0;}
API E cudaStreamCreateWithFlags(cudaStream_t*s,unsigned f){*s=handle();return 0;}
API E cudaStreamCreateWithPriority(cudaStream_t*s,unsigned f,int p){*s=handle();return 0;}
API E cudaStreamDestroy(cudaStream_t s){return 0;}
API E cudaStreamGetPriority(cudaStream_t s,int*p){*p=0;return 0;}
API E cudaStreamWaitEvent(cudaStream_t s,cudaEvent_t e,unsigned f){return 0;}
API E cudaStreamAddCallback(cudaStream_t s,cudaStreamCallback_t c,void*u,unsigned f){c(s,0,u);return 0;}
API E cudaLaunchHostFunc(cudaStream_t s,cudaHostFn_t f,void*u){f(u);return 0;}
API E cudaEventCreate(cudaEvent_t*e){*e=handle();return 0;}
API E cudaEventCreateWithFlags(cudaEvent_t*e,unsigned f){*e=handle();return 0;}
API E cudaEventDestroy(cudaEvent_t e){return 0;}
API E cudaEventRecord(cudaEvent_t e,cudaStream_t s){return 0;}
API E cudaEventRecordWithFlags(cudaEvent_t e,cudaStream_t s,unsigned f){return 0;}
API E cudaEventQuery(cudaEvent_t e){return 0;}
API E cudaEventSynchronize(cudaEvent_t e){n_evsync++; LOG("SIMULATED event sync\n"); if(capturing)return err(900);return 0;}
API E cudaEventElapsedTime(float*t,cudaEvent_t a,cudaEvent_t b){*t=0.1f;return 0;}
API E cudaStreamBeginCapture(cudaStream_t s,enum cudaStreamCaptureMode m){ if(capturing) return err(900); capturing=s;capid++;n_capture++;LOG("SIMULATED begin capture %p\n",(void*)s);return 0;}
API E cudaStreamBeginCaptureToGraph(cudaStream_t s,cudaGraph_t g,const cudaGraphNode_t*d,const cudaGraphEdgeData*e,size_t n,enum cudaStreamCaptureMode m){return cudaStreamBeginCapture(s,m);}
API E cudaStreamEndCapture(cudaStream_t s,cudaGraph_t*g){capturing=0;*g=handle();LOG("SIMULATED end capture\n");return 0;}
API E cudaStreamIsCapturing(cudaStream_t s,enum cudaStreamCaptureStatus*c){*c=capturing&&capturing==s?1:0;return 0;}
API E cudaStreamGetCaptureInfo(cudaStream_t s,enum cudaStreamCaptureStatus*c,unsigned long long*id,cudaGraph_t*g,const cudaGraphNode_t**d,const cudaGraphEdgeData**e,size_t*n){*c=capturing&&capturing==s?1:0;if(id)*id=capid;if(g)*g=(cudaGraph_t)handle();if(d)*d=0;if(e)*e=0;if(n)*n=0;return 0;}
API E cudaStreamUpdateCaptureDependencies(cudaStream_t s,cudaGraphNode_t*d,const cudaGraphEdgeData*e,size_t n,unsigned f){return 0;}
API E cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode*m){*m=0;return 0;}
API E cudaGraphInstantiateWithFlags(cudaGraphExec_t*x,cudaGraph_t g,unsigned long long f){n_instantiate++;*x=handle();return 0;}
API E cudaGraphInstantiate(cudaGraphExec_t*x,cudaGraph_t g,unsigned long long f){n_instantiate++;*x=handle();return 0;}
API E cudaGraphLaunch(cudaGraphExec_t x,cudaStream_t s){n_replay++;LOG("SIMULATED replay\n");return 0;}
API E cudaGraphDestroy(cudaGraph_t g){return 0;}
API E cudaGraphExecDestroy(cudaGraphExec_t g){return 0;}
API E cudaGraphGetNodes(cudaGraph_t g,cudaGraphNode_t*n,size_t*c){*c=1;return 0;}
API E cudaGraphRetainUserObject(cudaGraph_t g,cudaUserObject_t o,unsigned c,unsigned f){return 0;}
API E cudaUserObjectCreate(cudaUserObject_t*o,void*p,cudaHostFn_t f,unsigned c,unsigned fl){*o=handle();return 0;}
API E cudaUserObjectRelease(cudaUserObject_t o,unsigned c){return 0;}
API E cudaFuncGetAttributes(struct cudaFuncAttributes*a,const void*f){memset(a,0,sizeof*a);a->maxThreadsPerBlock=1024;a->numRegs=32;a->binaryVersion=90;a->ptxVersion=90;a->maxDynamicSharedSizeBytes=49152;return 0;}
API E cudaFuncSetAttribute(const void*f,enum cudaFuncAttribute a,int v){return 0;}
API E cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int*n,const void*f,int b,size_t s,unsigned fl){*n=2;return 0;}
API E cudaOccupancyMaxActiveBlocksPerMultiprocessor(int*n,const void*f,int b,size_t s){*n=2;return 0;}
API E cudaLaunchKernel(const void*f,dim3 g,dim3 b,void**a,size_t s,cudaStream_t st){n_launch++;return 0;}
API E cudaLaunchKernelExC(const cudaLaunchConfig_t*c,const void*f,void**a){n_launch++;return 0;}
API E __cudaLaunchKernel(const void*k,dim3 g,dim3 b,void**a,size_t s,cudaStream_t st){n_launch++;return 0;}
API E __cudaLaunchKernel_ptsz(const void*k,dim3 g,dim3 b,void**a,size_t s,cudaStream_t st){n_launch++;return 0;}
API E __cudaGetKernel(void**k,const void*f){*k=(void*)f;return 0;}
API void**__cudaRegisterFatBinary(void*f){return calloc(1,64);}
API void __cudaRegisterFatBinaryEnd(void**h){}
API void __cudaUnregisterFatBinary(void**h){}
API void __cudaRegisterFunction(void**h,const char*f,char*d,const char*n,int t,void*a,void*b,void*c,void*e,int*w){}
API void __cudaRegisterVar(void**h,char*a,char*b,const char*c,int d,size_t e,int f,int g){}
API char __cudaInitModule(void**h){return 1;}
API E cudaProfilerStart(void){return 0;}
API E cudaProfilerStop(void){return 0;}
API E cudaDeviceGetDefaultMemPool(cudaMemPool_t*p,int d){*p=handle();return 0;}
API E cudaMemPoolGetAttribute(cudaMemPool_t p,enum cudaMemPoolAttr a,void*v){memset(v,0,8);return 0;}
API E cudaMemPoolSetAttribute(cudaMemPool_t p,enum cudaMemPoolAttr a,void*v){return 0;}
API E cudaDeviceGetGraphMemAttribute(int d,enum cudaGraphMemAttributeType a,void*v){memset(v,0,8);return 0;}
extern void*dlopen(const char*,int); extern void*dlsym(void*,const char*);
API E cudaGetDriverEntryPointByVersion(const char*s,void**f,unsigned v,unsigned long long fl,enum cudaDriverEntryPointQueryResult*q){void*l=dlopen("libcuda.so.1",2);*f=l?dlsym(l,s):0;if(q)*q=*f?0:1;LOG("entry %s %p\n",s,*f);return *f?0:err(500);}
/* cublas */
typedef int B; 
API B cublasCreate_v2(void**h){*h=handle();return 0;} API B cublasDestroy_v2(void*h){return 0;} API B cublasSetStream_v2(void*h,void*s){return 0;} API B cublasSetWorkspace_v2(void*h,void*p,size_t n){return 0;} API B cublasSetMathMode(void*h,int m){return 0;} API B cublasGetMathMode(void*h,int*m){*m=0;return 0;} API B cublasSetPointerMode_v2(void*h,int m){return 0;} API B cublasGetPointerMode_v2(void*h,int*m){*m=0;return 0;} API B cublasSetSmCountTarget(void*h,int n){return 0;}
#define GEMM(name) API B name(void*h,...){n_launch++;return 0;}
GEMM(cublasSgemm_v2) GEMM(cublasDgemm_v2) GEMM(cublasGemmEx) GEMM(cublasSgemmEx) GEMM(cublasSgemmStridedBatched) GEMM(cublasDgemmStridedBatched) GEMM(cublasGemmStridedBatchedEx) GEMM(cublasSdot_v2) GEMM(cublasDdot_v2) GEMM(cublasDotEx) GEMM(cublasSgemv_v2) GEMM(cublasDgemv_v2) GEMM(cublasSgemmBatched) GEMM(cublasDgemmBatched)
API B cublasLtMatmul(void*h,...){n_launch++;return 0;}
API B cublasLtMatmulAlgoGetHeuristic(void*h,void*d,void*a,void*b,void*c,void*dd,void*p,int n,char*r,int*found){memset(r,0,96);*found=1;return 0;}
API B cublasLtMatmulDescCreate(void**d,int c,int s){*d=handle();return 0;} API B cublasLtMatmulDescDestroy(void*d){return 0;} API B cublasLtMatmulDescSetAttribute(void*d,int a,const void*b,size_t n){return 0;}
API B cublasLtMatmulPreferenceCreate(void**d){*d=handle();return 0;} API B cublasLtMatmulPreferenceDestroy(void*d){return 0;} API B cublasLtMatmulPreferenceSetAttribute(void*d,int a,const void*b,size_t n){return 0;}
API B cublasLtMatrixLayoutCreate(void**d,int t,uint64_t r,uint64_t c,int64_t ld){*d=handle();return 0;} API B cublasLtMatrixLayoutDestroy(void*d){return 0;} API B cublasLtMatrixLayoutSetAttribute(void*d,int a,const void*b,size_t n){return 0;}
