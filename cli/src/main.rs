mod context;

fn main() {}
