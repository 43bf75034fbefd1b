//! NCCL with one rank, whose operations only copy.

use std::thread::sleep;
use std::time::Duration;

use burn::tensor::backend::{Backend as _, DeviceOps};
use burn::tensor::{Device, Tensor};
use cubecl::device_handle::DeviceHandle;
use kernels::runtime::Machine;
use kernels::runtime::collective::{Collective, InFlight, JobId, Place};

use crate::support::*;

type Server = <cubecl::cuda::CudaRuntime as cubecl::Runtime>::Server;
type Tensors = Vec<Tensor<Cube, 1>>;

const LENGTH: usize = 1 << 20;

fn only_rank(device: &Device<Cube>) -> Box<dyn Collective<Cube>> {
    let place = Place { rank: 0, world: 1 };
    let id = JobId::new().expect("NCCL is installed");
    Cube::join(device, place, id).expect("one rank has nobody to wait for")
}

/// Makes the device's thread late, so that it does the tasks of the next lines only after all of them are queued.
fn delay(device: &Device<Cube>) {
    DeviceHandle::<Server>::new(device.id()).submit(|_| sleep(Duration::from_millis(20)));
}

/// While an operation copies, other kernels write to as many new tensors as the operation has, and the tensors that it read
/// are dropped. If their memory were given away too early, the copies would have other numbers.
#[test]
fn an_operation_keeps_its_memory_until_the_device_waits_for_it() {
    with_device(|| {
        let device = Default::default();
        let ranks = only_rank(&device);
        // It takes most of a millisecond to copy, before the small tensor is read.
        let large = Tensor::<Cube, 1>::zeros([1 << 28], &device);
        let begin = |number: f32| {
            let small = Tensor::<Cube, 1>::full([LENGTH], number, &device);
            Cube::sync(&device).expect("the device works");
            delay(&device);
            (vec![large.clone(), small], number)
        };
        type Operation<'a> = &'a dyn Fn(Tensors) -> InFlight<Cube>;
        let operations: [(&str, Operation); 5] = [
            ("all_reduce", &|xs| ranks.all_reduce(xs)),
            ("reduce_scatter", &|xs| ranks.reduce_scatter(xs)),
            ("all_gather", &|xs| ranks.all_gather(xs)),
            ("gather_parts", &|xs| ranks.gather_parts(xs)),
            ("broadcast", &|xs| ranks.broadcast(xs)),
        ];
        for (name, operation) in operations {
            for (round, is_waited_for) in (0..).zip([true, true, true, false]) {
                let (xs, number) = begin(round as f32);
                let in_flight = operation(xs);
                let others = [(); 4].map(|()| Tensor::<Cube, 1>::full([LENGTH], 7e7, &device));
                if is_waited_for {
                    let small = in_flight.wait().remove(1);
                    drop(others);
                    let bits = small.into_data();
                    assert!(bits.iter::<f32>().all(|x| x == number), "{name}, {round}");
                } else {
                    drop(in_flight);
                    // None of them has the memory of an output that is still written.
                    for other in others {
                        let bits = other.into_data();
                        assert!(bits.iter::<f32>().all(|x| x == 7e7), "{name}, dropped");
                    }
                }
            }
        }
    });
}
