//! The backward passes on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::{Epilogue, GatedScan, ScanInputs, SsdGradients, SsdScan};
use crate::autodiff::{input, optional, primitive, record};
use crate::profile::{Kind, timed};

impl<B: SsdScan, C: CheckpointStrategy> SsdScan for Autodiff<B, C> {
    fn ssd_scan_forward(
        scan: ScanInputs<Self>,
        chunk: usize,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        let (inputs, scan) = (inputs(&scan), values(scan));
        let (y, state) = B::ssd_scan_forward(scan.clone(), chunk);
        let y = record(inputs, y, (scan, chunk), |(scan, chunk), dy, _| {
            gradients(timed(Kind::Scan, || B::ssd_scan_backward(scan, dy, chunk)))
        });
        (y, Tensor::from_inner(state))
    }

    fn gated_scan_forward(
        scan: ScanInputs<Self>,
        epilogue: Epilogue<Self>,
        chunk: usize,
        _keep: bool,
    ) -> GatedScan<Self> {
        let [x, a_log, b, c, state] = inputs(&scan);
        let nodes = [
            x,
            a_log,
            b,
            c,
            state,
            optional(&epilogue.d),
            optional(&epilogue.z),
            optional(&epilogue.z_bias),
        ];
        let scan = values(scan);
        let epilogue = Epilogue {
            d: epilogue.d.map(Tensor::inner),
            z: epilogue.z.map(Tensor::inner),
            z_bias: epilogue.z_bias.map(Tensor::inner),
        };
        let GatedScan { out, state, kept } =
            B::gated_scan_forward(scan.clone(), epilogue.clone(), chunk, true);
        let saved = (scan, epilogue, kept, chunk);
        let out = record(
            nodes,
            out,
            saved,
            |(scan, epilogue, kept, chunk), dout, _| {
                let all = timed(Kind::Scan, || {
                    B::gated_scan_backward(scan, epilogue, kept, dout, chunk)
                });
                let [x, a_log, b, c, state] = gradients(all.scan);
                [
                    x,
                    a_log,
                    b,
                    c,
                    state,
                    all.d.map(primitive),
                    all.z.map(primitive),
                    all.z_bias.map(primitive),
                ]
            },
        );
        GatedScan {
            out,
            state: Tensor::from_inner(state),
            // It is saved on the graph.
            kept: None,
        }
    }
}

fn inputs<B: SsdScan, C: CheckpointStrategy>(
    scan: &ScanInputs<Autodiff<B, C>>,
) -> [Option<FloatTensor<Autodiff<B, C>>>; 5] {
    [
        input(&scan.x),
        input(&scan.a_log),
        input(&scan.b),
        input(&scan.c),
        optional(&scan.initial_state),
    ]
}

fn values<B: SsdScan, C: CheckpointStrategy>(scan: ScanInputs<Autodiff<B, C>>) -> ScanInputs<B> {
    ScanInputs {
        x: scan.x.inner(),
        a_log: scan.a_log.inner(),
        b: scan.b.inner(),
        c: scan.c.inner(),
        initial_state: scan.initial_state.map(Tensor::inner),
    }
}

fn gradients<B: SsdScan>(gradients: SsdGradients<B>) -> [Option<FloatTensor<B>>; 5] {
    [
        Some(primitive(gradients.x)),
        Some(primitive(gradients.a_log)),
        Some(primitive(gradients.b)),
        Some(primitive(gradients.c)),
        Some(primitive(gradients.initial_state)),
    ]
}
