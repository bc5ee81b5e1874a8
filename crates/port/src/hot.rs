//! `Port.turn` for Node, without what napi-rs does for calls in general.
//!
//! Finding and borrowing the native half of a class instance costs napi-rs 0.3 µs and more, several times what the
//! rest of an empty turn takes. So each port gets a function of its own, which carries a pointer to its reactor.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;
use std::time::Duration;

use napi::bindgen_prelude::Object;
use napi::{Env, JsError, JsValue, Status, check_status, sys};

use crate::error::Error;
use crate::reactor::Reactor;

/// A port's reactor until it is closed, shared by the port and its function.
pub type Shared = Rc<RefCell<Option<Reactor>>>;

/// One turn of a port that may be closed.
///
/// # Errors
///
/// Those of [`Reactor::turn`], and `EBADF` when the port is closed.
pub fn turn(
    shared: &RefCell<Option<Reactor>>,
    memory: &mut [u8],
    operations: u32,
    responses: u32,
    timeout_ms: i32,
) -> Result<u32, Error> {
    let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    let mut reactor = shared
        .try_borrow_mut()
        .map_err(|_| Error::new(libc::EBUSY, "the port is in a turn"))?;
    let reactor = reactor.as_mut().ok_or_else(closed)?;
    Ok(reactor
        .turn(memory, operations, responses, timeout)?
        .encode())
}

/// The error of a call on a closed port.
#[must_use]
pub fn closed() -> Error {
    Error::new(libc::EBADF, "the port is closed")
}

/// Gives a port its function.
///
/// # Errors
///
/// When JavaScript can't make it.
pub fn install(env: &Env, port: &Object<'_>, shared: &Shared) -> napi::Result<()> {
    let (env, data) = (
        env.raw(),
        Rc::into_raw(Rc::clone(shared)).cast_mut().cast::<c_void>(),
    );
    let mut function = ptr::null_mut();
    let release: sys::napi_finalize = Some(release);
    // SAFETY: the environment and the object are those of the running call. `data` is a pointer from `Rc::into_raw` that
    // is given up exactly once: by the finalizer when the function is collected, or right here.
    unsafe {
        let name = c"turn";
        let made = sys::napi_create_function(
            env,
            name.as_ptr(),
            4,
            Some(callback),
            data,
            &raw mut function,
        );
        let made = if made == sys::Status::napi_ok {
            sys::napi_add_finalizer(
                env,
                function,
                data,
                release,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        } else {
            made
        };
        if made != sys::Status::napi_ok {
            drop(Rc::from_raw(data.cast::<RefCell<Option<Reactor>>>()));
        }
        check_status!(made, "a port's function can't be made")?;
        let set = sys::napi_set_named_property(env, port.raw(), name.as_ptr(), function);
        check_status!(set, "a port's function can't be set")
    }
}

unsafe extern "C" fn release(_: sys::napi_env, data: *mut c_void, _: *mut c_void) {
    // SAFETY: `install` got the pointer from `Rc::into_raw`, and the finalizer runs once, on the thread of the port.
    drop(unsafe { Rc::from_raw(data.cast::<RefCell<Option<Reactor>>>()) });
}

unsafe extern "C" fn callback(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    // SAFETY: Node calls this with the environment and the arguments of a running call.
    match unsafe { call(env, info) } {
        Ok(value) => value,
        Err(error) => {
            // SAFETY: as above.
            unsafe { JsError::from(error).throw_into(env) };
            ptr::null_mut()
        }
    }
}

/// # Safety
///
/// Environment and arguments must be those of the running call of a function that `install` made.
unsafe fn call(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> Result<sys::napi_value, napi::Error<String>> {
    let invalid = |what: &str| Error::new(libc::EINVAL, format!("turn: {what}"));
    let mut arguments = [ptr::null_mut(); 4];
    let mut count = arguments.len();
    let mut data = ptr::null_mut();
    let (mut operations, mut responses, mut timeout_ms) = (0, 0, 0);
    let (mut kind, mut length, mut start) = (0, 0, ptr::null_mut());
    // SAFETY: the environment is that of the running call, and every place that is written to has the right type.
    let (got, numbers, array) = unsafe {
        let arguments = &mut arguments;
        let got = sys::napi_get_cb_info(
            env,
            info,
            &raw mut count,
            arguments.as_mut_ptr(),
            ptr::null_mut(),
            &raw mut data,
        );
        let numbers = [
            sys::napi_get_value_uint32(env, arguments[1], &raw mut operations),
            sys::napi_get_value_uint32(env, arguments[2], &raw mut responses),
            sys::napi_get_value_int32(env, arguments[3], &raw mut timeout_ms),
        ];
        let array = sys::napi_get_typedarray_info(
            env,
            arguments[0],
            &raw mut kind,
            &raw mut length,
            &raw mut start,
            ptr::null_mut(),
            ptr::null_mut(),
        );
        (got, numbers, array)
    };
    if got != sys::Status::napi_ok || data.is_null() || numbers != [sys::Status::napi_ok; 3] {
        return Err(invalid("operations, responses and timeoutMs are numbers").into());
    }
    if array != sys::Status::napi_ok || kind != sys::TypedarrayType::uint8_array {
        return Err(invalid("memory is a Uint8Array").into());
    }
    let memory = if start.is_null() {
        &mut []
    } else {
        // SAFETY: the array has `length` bytes. No JavaScript runs on this thread before the call returns, other threads
        // have no access to this memory since it isn't shared, and asynchronous I/O never uses it.
        unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), length) }
    };
    // SAFETY: `install` got the pointer from `Rc::into_raw`, and the function that carries it keeps it alive.
    let shared = unsafe { &*data.cast::<RefCell<Option<Reactor>>>() };
    let report = turn(shared, memory, operations, responses, timeout_ms)?;
    let mut value = ptr::null_mut();
    // SAFETY: the environment is that of the running call.
    let made = unsafe { sys::napi_create_uint32(env, report, &raw mut value) };
    if made != sys::Status::napi_ok {
        return Err(napi::Error::new(
            Status::from(made).to_string(),
            "turn: no result".to_owned(),
        ));
    }
    Ok(value)
}
