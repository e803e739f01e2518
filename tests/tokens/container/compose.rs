//! The demo of a highly available set-up: two engines on one database and one token, behind one edge.

use std::{
    path::Path,
    process::{Command, Output},
};

/// A started demo, with containers, volumes and network of its own names; removed when dropped.
struct Demo {
    project: String,
}

impl Demo {
    fn run(&self, command: &str) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/compose-demo");
        let mut demo = Command::new(script);
        demo.env("PINSEAL", env!("CARGO_BIN_EXE_pinseal"));
        demo.env("PINSEAL_IMAGE_SUFFIX", "-test").env("COMPOSE_PROJECT_NAME", &self.project);
        // Any free port.
        demo.env("PINSEAL_EDGE_PORT", "0").arg(command).output().unwrap()
    }

    fn must(&self, command: &str) -> String {
        let done = self.run(command);
        let printed = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{command}: {printed}{}", String::from_utf8_lossy(&done.stderr));
        printed
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.run("down");
    }
}

#[test]
fn one_engine_views_the_pin_that_a_stopped_one_set() {
    let demo = Demo { project: format!("pinseal-test-{}", std::process::id()) };
    demo.must("up");
    assert!(demo.must("test").ends_with("card 8400 has its PIN\n"));
    demo.must("down");
}
