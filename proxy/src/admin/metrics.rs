//! The figures, in the text format of OpenMetrics.

use crate::app::State;

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All figures of this moment.
pub fn text(_state: &State) -> Result<String, std::fmt::Error> {
    Ok("# EOF\n".to_owned())
}
