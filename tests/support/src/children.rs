//! Child processes that follow orders step by step, and never outlive their test.

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2, read, write};
use std::os::fd::OwnedFd;

pub struct Child {
    pid: Pid,
    orders: OwnedFd,
    answers: OwnedFd,
    reaped: bool,
}

/// The child's side. It may only make system calls, because it is forked from a program with threads.
pub struct Told {
    orders: OwnedFd,
    answers: OwnedFd,
}

impl Told {
    /// Reports that the last step is done, and waits for the order to continue.
    pub fn next_step(&self) {
        let _ = write(&self.answers, b".");
        let _ = read(&self.orders, &mut [0]);
    }
}

impl Child {
    /// Forks a child that runs `steps` up to the first `next_step`, and exits when `steps` returns.
    pub fn new(steps: impl FnOnce(&Told)) -> Child {
        let (told_orders, orders) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (answers, told_answers) = pipe2(OFlag::O_CLOEXEC).unwrap();
        // SAFETY: until it execs or exits, the child makes only system calls and touches only memory that no
        // lock of another thread guards.
        let pid = match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                steps(&Told { orders: told_orders, answers: told_answers });
                // SAFETY: ends the process without running any code of the parent.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => child,
        };
        let child = Child { pid, orders, answers, reaped: false };
        child.wait_for_step();
        child
    }

    /// Forks a child that only sleeps.
    pub fn sleeping() -> Child {
        Child::new(Told::next_step)
    }

    /// Forks a child that ends at once, and waits for it.
    pub fn ending() {
        // SAFETY: the child makes only one system call.
        match unsafe { fork() }.unwrap() {
            // SAFETY: ends the process without running any code of the parent.
            ForkResult::Child => unsafe { libc::_exit(0) },
            ForkResult::Parent { child } => drop(waitpid(child, None).unwrap()),
        }
    }

    /// Adopts a child that was not made by [`Child::new`]: it is ended and waited for, but takes no orders.
    pub fn adopt(pid: i32) -> Child {
        let (answers, orders) = pipe2(OFlag::O_CLOEXEC).unwrap();
        Child { pid: Pid::from_raw(pid), orders, answers, reaped: false }
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Lets the child continue, and returns once it has done the step.
    pub fn step(&self) {
        self.go();
        self.wait_for_step();
    }

    /// Lets the child continue.
    pub fn go(&self) {
        write(&self.orders, b".").unwrap();
    }

    fn wait_for_step(&self) {
        read(&self.answers, &mut [0]).unwrap();
    }

    /// Kills the child but leaves it a zombie.
    pub fn kill(&self) {
        kill(self.pid, Signal::SIGKILL).unwrap();
        while !std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
    }

    /// Waits for the ended child, after which its pid is free.
    pub fn reap(&mut self) {
        waitpid(self.pid, None).unwrap();
        self.reaped = true;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}
