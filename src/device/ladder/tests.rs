//! Every machine that the ladder may meet, as a table: facts to the device and the reason.

use super::*;
use crate::config::DeviceWish;
use crate::device::{CudaFacts, Device, DeviceChoice, DeviceError, Hardware, Images, StartFailure, choose};

const GIB: u64 = 1 << 30;

fn gpu(name: &str, compute_capability: (u32, u32), probe: Option<Result<u64, ProbeFailure>>) -> GpuFacts {
    GpuFacts { name: name.into(), compute_capability, total_bytes: 8 * GIB, probe }
}

fn good(name: &str, compute_capability: (u32, u32)) -> GpuFacts {
    gpu(name, compute_capability, Some(Ok(7 * GIB)))
}

fn old(name: &str, compute_capability: (u32, u32)) -> GpuFacts {
    gpu(name, compute_capability, None)
}

/// A sound machine with these GPUs.
fn with(gpus: &[GpuFacts]) -> DriverFacts {
    DriverFacts {
        library: Ok("/usr/lib/libcuda.so.580.95".into()),
        start: Ok(()),
        cuda_version: (13, 0),
        gpus: Ok(gpus.to_vec()),
        cublas: Ok("cuBLASLt 13.0.2 (/usr/lib/libcublasLt.so.13)".into()),
        visible_devices: None,
        images: Images { machine_code: vec!["80".into(), "90a".into()], ptx: vec!["80".into()] },
    }
}

fn no_image() -> Option<Result<u64, ProbeFailure>> {
    Some(Err(ProbeFailure::NoImage("CUDA_ERROR_NO_BINARY_FOR_GPU".into())))
}

fn nowhere() -> DriverFacts {
    DriverFacts { library: Err("libcuda.so.1: cannot open shared object file".into()), ..with(&[]) }
}

fn not_started(is_no_device: bool, message: &str) -> DriverFacts {
    DriverFacts { start: Err(StartFailure { is_no_device, message: message.into() }), ..with(&[]) }
}

fn hardware(facts: DriverFacts, nvidia: NvidiaFacts) -> Hardware {
    Hardware { cuda: CudaFacts::Asked(Box::new(facts)), nvidia, ..Hardware::default() }
}

fn decide(facts: &DriverFacts, nvidia: &NvidiaFacts, wish: DeviceWish) -> Result<DeviceChoice, DeviceError> {
    choose(&hardware(facts.clone(), nvidia.clone()), wish)
}

/// What `auto` falls back from, and `cuda` refuses with.
#[test]
fn machines_on_which_no_gpu_can_be_used() {
    let none = NvidiaFacts::default();
    let card = NvidiaFacts { gpus: vec!["NVIDIA GeForce RTX 3060".into()], pci_devices: 1, ..none.clone() };
    let bare = NvidiaFacts { pci_devices: 1, ..none.clone() };
    let driven = NvidiaFacts { driver_version: Some("550.54.14".into()), ..card.clone() };
    let hidden = DriverFacts { visible_devices: Some(String::new()), ..not_started(true, "CUDA_ERROR_NO_DEVICE") };
    let misnamed = DriverFacts { visible_devices: Some("7".into()), ..with(&[]) };
    let outdated = DriverFacts { cuda_version: (12, 4), ..with(&[]) };
    let silent = DriverFacts { gpus: Err("counting the GPUs: CUDA_ERROR_UNKNOWN".into()), ..with(&[]) };
    let only_90a = DriverFacts {
        images: Images { machine_code: vec!["90a".into()], ptx: vec![] },
        ..with(&[gpu("B", (12, 0), no_image())])
    };
    let wrong = gpu("G", (8, 6), Some(Err(ProbeFailure::Wrong("3 of 32 integers wrong".into()))));
    let broken = gpu("G", (8, 6), Some(Err(ProbeFailure::Failed("a kernel: CUDA_ERROR_ILLEGAL_ADDRESS".into()))));
    let cases = [
        (nowhere(), &none, "no NVIDIA driver is here (libcuda.so.1: cannot open shared object file)"),
        (
            nowhere(),
            &card,
            "the NVIDIA driver's library cannot be opened, although NVIDIA GeForce RTX 3060 is here (libcuda.so.1: \
             cannot open shared object file)",
        ),
        (
            nowhere(),
            &bare,
            "the NVIDIA driver's library cannot be opened, although a GPU is here (libcuda.so.1: cannot open shared \
             object file)",
        ),
        (
            not_started(false, "CUDA_ERROR_UNKNOWN (unknown error)"),
            &none,
            "the NVIDIA driver does not start: CUDA_ERROR_UNKNOWN (unknown error)",
        ),
        (hidden, &none, "the NVIDIA driver offers no GPU: CUDA_VISIBLE_DEVICES is empty"),
        (misnamed, &none, "the NVIDIA driver offers no GPU: CUDA_VISIBLE_DEVICES is `7`"),
        (not_started(true, "CUDA_ERROR_NO_DEVICE"), &none, "the NVIDIA driver offers no GPU: CUDA_ERROR_NO_DEVICE"),
        (with(&[]), &none, "the NVIDIA driver offers no GPU: it lists none"),
        (silent, &none, "the NVIDIA driver does not list its GPUs: counting the GPUs: CUDA_ERROR_UNKNOWN"),
        (
            outdated.clone(),
            &none,
            "the NVIDIA driver is too old: it speaks CUDA 12.4, and 13.0 is needed (driver 580 or later)",
        ),
        (
            outdated,
            &driven,
            "the NVIDIA driver is too old: it speaks CUDA 12.4 (driver 550.54.14), and 13.0 is needed (driver 580 or \
             later)",
        ),
        (with(&[old("GTX 1080", (6, 1))]), &none, "GTX 1080 has compute capability 6.1, and 8.0 is needed"),
        (with(&[old("T4", (7, 5))]), &none, "T4 has compute capability 7.5, and 8.0 is needed"),
        (
            only_90a,
            &none,
            "this build has no kernel image for B, compute capability 12.0: it has machine code for 9.0a and no PTX \
             (CUDA_ERROR_NO_BINARY_FOR_GPU)",
        ),
        (with(&[wrong]), &none, "a probe kernel gave a wrong answer on G: 3 of 32 integers wrong"),
        (with(&[broken]), &none, "a probe kernel failed on G: a kernel: CUDA_ERROR_ILLEGAL_ADDRESS"),
        (
            with(&[old("GTX 1080", (6, 1)), old("T4", (7, 5))]),
            &none,
            "GTX 1080 has compute capability 6.1, and 8.0 is needed; T4 has compute capability 7.5, and 8.0 is needed",
        ),
    ];
    for (facts, nvidia, expected) in cases {
        let auto = decide(&facts, nvidia, DeviceWish::Auto).expect("the CPU is always there");
        assert_eq!((auto.device, auto.reason.as_str()), (Device::Cpu, expected));
        let error = decide(&facts, nvidia, DeviceWish::Cuda(None)).expect_err(expected).to_string();
        assert_eq!(error, format!("the device `cuda` was asked for, but {expected}"));
        let cpu = decide(&facts, nvidia, DeviceWish::Cpu).expect("the CPU is always there");
        assert_eq!((cpu.device, cpu.reason.as_str()), (Device::Cpu, "it was asked for"));
    }
}

/// Which GPU is taken, and what is said with it.
#[test]
fn machines_on_which_a_gpu_can_be_used() {
    let first = "it is the first GPU that can be used";
    let images = |machine_code: &[&str], ptx: &[&str]| Images {
        machine_code: machine_code.iter().map(|arch| (*arch).to_owned()).collect(),
        ptx: ptx.iter().map(|arch| (*arch).to_owned()).collect(),
    };
    let blackwell = good("RTX 5060", (12, 0));
    let with_machine_code =
        DriverFacts { images: images(&["80", "120"], &[]), ..with(std::slice::from_ref(&blackwell)) };
    let with_ptx = DriverFacts { images: images(&["80"], &["80"]), ..with(std::slice::from_ref(&blackwell)) };
    let without_cublas = DriverFacts { cublas: Err("no libcublasLt.so.13".into()), ..with(&[good("A", (8, 6))]) };
    let two = with(&[old("GTX 1080", (6, 1)), good("RTX 3060", (8, 6))]);
    let both = with(&[good("A", (8, 0)), old("B", (9, 0))]);
    let newer_driver = DriverFacts { cuda_version: (13, 1), ..with(&[good("H100", (9, 0))]) };
    let cases = [
        (with(&[good("A100", (8, 0))]), 0, first.to_owned()),
        (newer_driver, 0, first.to_owned()),
        (with_machine_code, 0, first.to_owned()),
        (with_ptx, 0, first.to_owned()),
        (
            without_cublas,
            0,
            format!(
                "{first}; cuBLAS is not here (no libcublasLt.so.13): our own matrix product serves, slower; `lantern \
                 cuda install` gets cuBLAS"
            ),
        ),
        (two, 1, format!("{first} (GTX 1080 has compute capability 6.1, and 8.0 is needed)")),
        (both, 0, first.to_owned()),
    ];
    for (facts, ordinal, expected) in cases {
        for wish in [DeviceWish::Auto, DeviceWish::Cuda(None)] {
            let choice = decide(&facts, &NvidiaFacts::default(), wish).expect("a GPU");
            assert_eq!((choice.device, choice.reason.as_str()), (Device::Cuda { ordinal }, expected.as_str()));
        }
    }
}

#[test]
fn a_gpu_that_is_named_is_taken_or_refused() {
    let gpus = [good("A", (8, 0)), old("GTX 1080", (6, 1)), good("C", (9, 0)), old("D", (9, 0))];
    let facts = with(&gpus);
    let named = |facts: &DriverFacts, ordinal| decide(facts, &NvidiaFacts::default(), DeviceWish::Cuda(Some(ordinal)));
    let taken = named(&facts, 2).expect("it can be used");
    assert_eq!((taken.device, taken.reason.as_str()), (Device::Cuda { ordinal: 2 }, "it was asked for"));
    let cases = [
        (&facts, 1, "the device `cuda:1` was asked for, but GTX 1080 has compute capability 6.1, and 8.0 is needed"),
        (&facts, 3, "the device `cuda:3` was asked for, but D was not tried"),
        (&facts, 4, "the device `cuda:4` was asked for, but there is no GPU 4: they are 0 to 3"),
        (&with(&gpus[..1]), 1, "the device `cuda:1` was asked for, but there is no GPU 1: the only one is 0"),
    ];
    for (facts, ordinal, expected) in cases {
        assert_eq!(named(facts, ordinal).expect_err(expected).to_string(), expected);
    }
}

#[test]
fn every_rung_that_was_tried_is_told() {
    let rungs = |steps: &[Step]| steps.iter().map(|step| step.rung).collect::<Vec<_>>();
    let told = climb(&nowhere(), &NvidiaFacts::default());
    assert_eq!(rungs(&told.driver), [Rung::Library]);
    assert!(told.gpus.is_empty());
    let facts = with(&[old("GTX 1080", (6, 1)), good("RTX 3060", (8, 6)), old("RTX 3070", (8, 6))]);
    let told = climb(&facts, &NvidiaFacts::default());
    assert_eq!(rungs(&told.driver), [Rung::Library, Rung::Start, Rung::Version, Rung::Gpu]);
    assert_eq!(rungs(&told.gpus[0].steps), [Rung::Capability]);
    assert_eq!(rungs(&told.gpus[1].steps), [Rung::Capability, Rung::Cublas, Rung::Image, Rung::Probe]);
    assert_eq!(rungs(&told.gpus[2].steps), [Rung::Capability, Rung::Cublas, Rung::Image]);
    let states = told.gpus.iter().map(|gpu| (gpu.can_be_used(), gpu.waits_for_probe(), gpu.free_bytes));
    assert_eq!(states.collect::<Vec<_>>(), [(false, false, None), (true, false, Some(7 * GIB)), (false, true, None)]);
}

#[test]
fn a_build_without_cuda_says_what_was_seen() {
    let none = NvidiaFacts::default();
    let bare = NvidiaFacts { pci_devices: 1, ..none.clone() };
    let hidden = NvidiaFacts { driver_version: Some("550.54".into()), ..none.clone() };
    let driven = NvidiaFacts { gpus: vec!["NVIDIA GeForce RTX 3060".into()], ..hidden.clone() };
    let cases = [
        (none, "this build has no CUDA, and no NVIDIA GPU was seen"),
        (bare, "this build has no CUDA, although an NVIDIA GPU is here (without its driver)"),
        (hidden, "this build has no CUDA, although an NVIDIA GPU is here (driver 550.54)"),
        (driven, "this build has no CUDA, although NVIDIA GeForce RTX 3060 is here (driver 550.54)"),
    ];
    for (nvidia, expected) in cases {
        let hardware = Hardware { nvidia, ..Hardware::default() };
        let auto = choose(&hardware, DeviceWish::Auto).expect("the CPU is always there");
        assert_eq!((auto.device, auto.reason.as_str()), (Device::Cpu, expected));
        let error = choose(&hardware, DeviceWish::Cuda(None)).expect_err("no CUDA").to_string();
        assert_eq!(error, format!("the device `cuda` was asked for, but {expected}"));
    }
}
