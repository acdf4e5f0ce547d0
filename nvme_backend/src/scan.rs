//! Which namespaces there are, and what became of those that were known.

use std::sync::Arc;

use wire::nvme::{ActiveNamespaces, IDENTIFY_LENGTH, IdentifyNamespace, NamespaceIdentifiers};

use crate::ControllerEvent;
use crate::admin::Admin;
use crate::bring_up::{Step, Task};
use crate::namespace::{Namespace, NamespaceIdentity, Present};
use crate::view::View;

/// Version 1.3, which has the Namespace Identification Descriptor list.
const VERSION_1_3: u32 = 0x1_0300;

/// Text of a fixed-length field without its padding.
pub(crate) fn text(field: &[u8]) -> String {
    let printable = |&byte: &u8| if (0x20..0x7F).contains(&byte) { char::from(byte) } else { ' ' };
    field.iter().take_while(|&&byte| byte != 0).map(printable).collect::<String>().trim().to_owned()
}

impl Admin {
    pub(crate) fn start_scan(&mut self, task: Task) {
        self.scan.clear();
        self.scanned.clear();
        self.start_task(task, Step::List { after: 0 });
    }

    /// A piece of the list of active namespaces came.
    pub(crate) fn listed(&mut self, task: Task, after: u32, good: bool) {
        let most = self.shared.options.namespaces_max as usize;
        let Some(data) = self.read_area(IDENTIFY_LENGTH) else { return };
        if good {
            let list = ActiveNamespaces::parse(&data);
            let room = most - self.scan.len().min(most);
            self.scan.extend(list.iter(after).take(room));
            let last = self.scan.last().copied().unwrap_or(0);
            if list.is_full() && last > after && self.scan.len() < most {
                return self.start_task(task, Step::List { after: last });
            }
        } else {
            // Without a list, all that there may be are tried.
            let count = self.identify.as_ref().map_or(0, |identify| identify.namespaces);
            self.scan = (1..=count).take(most).collect();
        }
        self.next_namespace(task, 0);
    }

    fn next_namespace(&mut self, task: Task, at: usize) {
        if at < self.scan.len() {
            return self.start_task(task, Step::Namespace { at });
        }
        self.remove_missing();
        self.scan_done(task);
    }

    pub(crate) fn namespace_identified(&mut self, task: Task, at: usize, good: bool) {
        let identify =
            self.read_area(IDENTIFY_LENGTH).filter(|_| good).as_deref().and_then(IdentifyNamespace::parse);
        // All zeros: it is not active (NVMe Base 2.0 §5.17.2.1).
        let Some(identify) = identify.filter(|identify| identify.size != 0) else {
            return self.next_namespace(task, at + 1);
        };
        self.identified = Some(identify);
        if self.version >= VERSION_1_3 {
            return self.start_task(task, Step::Identifiers { at });
        }
        self.adopt(at, &NamespaceIdentifiers::default());
        self.next_namespace(task, at + 1);
    }

    pub(crate) fn namespace_named(&mut self, task: Task, at: usize, good: bool) {
        let names =
            self.read_area(IDENTIFY_LENGTH).filter(|_| good).as_deref().map(NamespaceIdentifiers::parse);
        self.adopt(at, &names.unwrap_or_default());
        self.next_namespace(task, at + 1);
    }

    /// A namespace is there: a new one, or one that is known.
    fn adopt(&mut self, at: usize, names: &NamespaceIdentifiers) {
        let (Some(&nsid), Some(identify), Some(controller)) =
            (self.scan.get(at), self.identified.take(), self.identify.as_ref())
        else {
            return;
        };
        let identity = NamespaceIdentity {
            nsid,
            nguid: names.nguid.or((identify.nguid != [0; 16]).then_some(identify.nguid)),
            eui64: names.eui64.or((identify.eui64 != [0; 8]).then_some(identify.eui64)),
            uuid: names.uuid,
            serial: text(&controller.serial),
            model: text(&controller.model),
            firmware: text(&controller.firmware),
        };
        let view = match names.command_set {
            None | Some(0) => {
                let page_shift = self.function.capabilities.page_shift_min();
                View::new(nsid, controller, &self.limits, &identify, page_shift)
            }
            Some(set) => {
                Err(format!("it belongs to command set {set:02x}h; only the NVM command set is supported"))
            }
        };
        let state = Present { identity, identify, view, present: true };
        self.scanned.push(nsid);
        let known = self
            .namespaces
            .get(&nsid)
            .filter(|known| known.medium().state().identity.is_same(&state.identity));
        let known = known.cloned().or_else(|| self.moved_here(&state.identity));
        let Some(known) = known else {
            self.add_namespace(state);
            return;
        };
        let before = known.medium().state().clone();
        if before.present && before.view == state.view && before.identity == state.identity {
            // Utilization may be new; nobody has to be told.
            known.medium().state().identify = state.identify;
            return;
        }
        let event = match (&state.view, before.present) {
            (Err(reason), _) => ControllerEvent::NamespaceUnusable { nsid, reason: reason.clone() },
            (Ok(_), false) => ControllerEvent::NamespaceAdded { nsid },
            (Ok(view), true) => ControllerEvent::NamespaceChanged { nsid, blocks: view.geometry.blocks },
        };
        if before.view != state.view || !before.present {
            self.events.push(event);
        }
        known.medium().set(state);
        self.namespaces.insert(nsid, known);
    }

    /// A namespace that was known under another identifier, by a globally unique name.
    fn moved_here(&mut self, identity: &NamespaceIdentity) -> Option<Arc<Namespace>> {
        let unique = identity.uuid.is_some() || identity.nguid.is_some() || identity.eui64.is_some();
        let found = self.namespaces.iter().find(|(_, known)| {
            let state = known.medium().state();
            unique && !state.present && state.identity.is_same(identity)
        });
        let number = *found?.0;
        self.namespaces.remove(&number)
    }

    fn add_namespace(&mut self, state: Present) {
        let nsid = state.identity.nsid;
        self.events.push(match &state.view {
            Ok(_) => ControllerEvent::NamespaceAdded { nsid },
            Err(reason) => ControllerEvent::NamespaceUnusable { nsid, reason: reason.clone() },
        });
        if let Some(other) = self.namespaces.remove(&nsid) {
            // Another medium under the same number: who holds the old one must not read the new one.
            other.medium().set_present(false);
        }
        self.namespaces.insert(nsid, Arc::new(Namespace::new(self.shared.clone(), state)));
    }

    fn remove_missing(&mut self) {
        for (&nsid, namespace) in &self.namespaces {
            if !self.scanned.contains(&nsid) && namespace.is_present() {
                namespace.medium().set_present(false);
                self.events.push(ControllerEvent::NamespaceRemoved { nsid });
            }
        }
    }
}
