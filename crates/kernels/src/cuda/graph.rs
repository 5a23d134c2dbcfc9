//! CUDA graphs: what a stream is given between begin and end becomes a graph that is launched by one call.
//! Knows seven calls of the driver; what is recorded is not its business.
//! Cost: making a graph takes some microseconds per launch in it, launching it about as long as one kernel.

use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUstream, CUstreamCaptureMode};

use super::driver::check;
use super::error::GpuError;

/// From now on the stream's work is recorded.
pub(super) fn begin(stream: CUstream) -> Result<(), GpuError> {
    // Relaxed: the arena may have to grow meanwhile, which is no work of the stream.
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream lives as long as the engine.
    check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream, mode) })
}

/// The graph of what was recorded. The stream works again, whatever comes out.
pub(super) fn end(stream: CUstream) -> Result<u64, GpuError> {
    let mut graph: CUgraph = std::ptr::null_mut();
    // SAFETY: the stream lives as long as the engine, the pointer is to a live pointer.
    let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(stream, &mut graph) });
    if graph.is_null() {
        let problem = "what was launched cannot be recorded".into();
        return Err(ended.err().unwrap_or(GpuError::Call { call: "cuStreamEndCapture".into(), problem }));
    }
    let mut executable: CUgraphExec = std::ptr::null_mut();
    // SAFETY: the graph was just made and is destroyed once; what is made of it needs it no more.
    let made = unsafe {
        let made = check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
        sys::cuGraphDestroy(graph);
        // Now, and not at the first launch: whether there is memory for it is part of whether it can be recorded.
        made.and_then(|()| check("cuGraphUpload", sys::cuGraphUpload(executable, stream)))
    };
    ended.and(made).map(|()| executable as u64).inspect_err(|_| {
        if !executable.is_null() {
            forget(executable as u64);
        }
    })
}

/// Runs a graph.
pub(super) fn launch(graph: u64, stream: CUstream) -> Result<(), GpuError> {
    // SAFETY: made by `end` and not forgotten yet: `Recording` holds it.
    check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph as CUgraphExec, stream) })
}

/// Frees a graph; if it is running, when it has ended.
pub(super) fn forget(graph: u64) {
    // SAFETY: made by `end`, destroyed once. An error here has no consequence.
    unsafe { sys::cuGraphExecDestroy(graph as CUgraphExec) };
}
