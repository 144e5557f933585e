//! How the legs of a build stand, counted: kept with every change of a task, so that nobody walks the legs to know.

use crate::record::TaskState;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Legs {
    pub(crate) required: u16,
    pub(crate) required_open: u16,
    /// Required ones that failed or were cancelled.
    pub(crate) required_lost: u16,
    pub(crate) optional_open: u16,
    pub(crate) done: u16,
}

impl Legs {
    pub(crate) fn add(&mut self, required: bool, state: &TaskState) {
        self.required += u16::from(required);
        if let Some(count) = self.count(required, state) {
            *count += 1;
        }
    }

    pub(crate) fn change(&mut self, required: bool, old: &TaskState, new: &TaskState) {
        if let Some(count) = self.count(required, old) {
            *count -= 1;
        }
        if let Some(count) = self.count(required, new) {
            *count += 1;
        }
    }

    /// Where a leg in this state is counted.
    fn count(&mut self, required: bool, state: &TaskState) -> Option<&mut u16> {
        match state {
            TaskState::Succeeded { .. } => Some(&mut self.done),
            TaskState::Failed { .. } | TaskState::Cancelled => required.then_some(&mut self.required_lost),
            TaskState::Waiting { .. }
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Shared { .. }
            | TaskState::Backoff { .. } => {
                Some(if required { &mut self.required_open } else { &mut self.optional_open })
            }
        }
    }
}
