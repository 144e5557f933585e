//! What a tag may come to name, as a user meets it: verified, run, in the asked formats, and moved only from where it was.

mod attestations;
mod formats;
mod images;
mod peers;
mod setting;
mod signing;
mod smoke;
mod tags;
mod verify;
