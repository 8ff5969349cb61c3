//! A small generator whose seed is printed, so that a failure can be repeated.

pub struct Random(u64);

impl Random {
    /// With the seed that `ATOMIC_RS_SEED` names, or always the same one.
    pub fn new() -> Self {
        let seed = std::env::var("ATOMIC_RS_SEED").ok();
        let seed = seed
            .and_then(|seed| seed.parse().ok())
            .unwrap_or(20_261_120);
        println!("seed {seed} (ATOMIC_RS_SEED repeats it)");
        Self(seed)
    }

    /// Another one, for another thread.
    pub fn branch(&mut self) -> Self {
        Self(self.step())
    }

    fn step(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0
    }

    /// The upper bits: the lower ones repeat soon.
    fn bits(&mut self) -> u32 {
        u32::try_from(self.step() >> 32).unwrap()
    }

    /// From 0 to 1.
    pub fn fraction(&mut self) -> f64 {
        f64::from(self.bits()) / f64::from(u32::MAX)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.bits()).unwrap() % end
    }

    /// One of them.
    pub fn one_of<'t, T>(&mut self, them: &'t [T]) -> &'t T {
        &them[self.below(them.len())]
    }
}
