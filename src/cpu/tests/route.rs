//! Which experts tokens go to.

use super::*;
use crate::cpu::{RouteParams, Scoring};

#[test]
fn even_routing_takes_the_experts_in_turn_and_keeps_the_weights() {
    let chosen =
        RouteParams { top_k: 2, scoring: Scoring::Softmax, normalize: true, scale: 1.0, groups: None, even: false };
    // Every token prefers experts 2 and 0.
    let logits = [1.0, 0.0, 2.0].repeat(4);
    let route = |params: RouteParams| {
        let (mut ids, mut weights) = (vec![9; 8], vec![0.0; 8]);
        Cpu::new(NonZeroUsize::new(1)).route(&logits, 3, None, &params, &mut ids, &mut weights);
        (ids, weights)
    };
    let (ids, weights) = route(chosen);
    assert_eq!(ids, [2, 0].repeat(4));
    assert_eq!(route(RouteParams { even: true, ..chosen }), (vec![0, 1, 2, 0, 1, 2, 0, 1], weights));
}
