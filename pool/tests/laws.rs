//! The contract of a thin pool, held by the embedded engine in this process.
mod support {
    pub mod direct_exporter;
    pub mod embedded_stage;
    pub mod laws;
    pub mod stage;
}

use support::embedded_stage::EmbeddedStage;
use support::stage::Stage;

#[test]
fn the_embedded_engine_keeps_the_laws() {
    support::laws::run(&|| Box::new(EmbeddedStage::new()) as Box<dyn Stage>);
}
