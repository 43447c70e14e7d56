pub mod checked;
