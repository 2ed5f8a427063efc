//! GPU memory at fixed addresses, of which parts are given back and had again: what recorded graphs hold stays right.
//!
//! Addresses are reserved for good; memory is put behind them in runs of whole pages. Source: CUDA driver API, "Virtual
//! Memory Management".

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{DriverError, result, sys};

use super::error::driver;
use super::gpu::Context;
use super::{CudaError, DType, DeviceTensor, Gpu};

/// A tensor in parts of equally many rows, those from the end of each to be given back first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartRows {
    /// How many parts.
    pub parts: usize,
    /// Rows of each.
    pub rows: usize,
    /// Rows of each that always stay.
    pub least: usize,
}

/// Which pages have memory, a run for what came at once: it leaves at once too.
#[derive(Debug)]
struct PageTable {
    page_bytes: usize,
    pages: usize,
    runs: Vec<Range<usize>>,
}

impl PageTable {
    /// Which pages the first `rows` of each part touch, of tensors whose parts lie side by side, without gaps.
    fn of_parts(&self, parts: usize, part_bytes: usize, bytes: usize) -> Vec<bool> {
        let mut wanted = vec![false; self.pages];
        for start in (0..parts).map(|part| part * part_bytes).filter(|_| bytes > 0) {
            wanted[start / self.page_bytes..(start + bytes).div_ceil(self.page_bytes)].fill(true);
        }
        wanted
    }

    /// Runs of wanted pages that have no memory.
    fn missing(&self, wanted: &[bool]) -> Vec<Range<usize>> {
        let mut missing = wanted.to_vec();
        self.runs.iter().for_each(|run| missing[run.clone()].fill(false));
        let mut runs: Vec<Range<usize>> = Vec::new();
        for page in (0..self.pages).filter(|page| missing[*page]) {
            match runs.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    /// Takes out the runs of which no page is wanted.
    fn take_unwanted(&mut self, wanted: &[bool]) -> Vec<Range<usize>> {
        self.runs.extract_if(.., |run| !wanted[run.clone()].contains(&true)).collect()
    }

    fn bytes(&self, run: &Range<usize>) -> usize {
        run.len() * self.page_bytes
    }
}

/// Reserved addresses, and the memory behind some of them.
pub(super) struct Pages {
    context: Arc<Context>,
    address: u64,
    table: PageTable,
    /// Bytes that had memory at most.
    most_bytes: usize,
    what: String,
}

impl Pages {
    /// Addresses for `bytes` bytes without memory; `None` where the driver cannot have such.
    pub(super) fn reserve(context: &Arc<Context>, bytes: usize, what: &str) -> Result<Option<Self>, CudaError> {
        context.bind()?;
        if bytes == 0 || !context.has_virtual_memory()? {
            return Ok(None);
        }
        let (mut page_bytes, properties) = (0, properties(context));
        let least = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        // SAFETY: both pointers are of locals of the right types.
        unsafe { sys::cuMemGetAllocationGranularity(&mut page_bytes, &properties, least) }
            .result()
            .map_err(driver("the size of pages"))?;
        let pages = bytes.div_ceil(page_bytes);
        let mut address = 0;
        // SAFETY: the pointer is of a local; the addresses are freed once, in `drop`.
        unsafe { sys::cuMemAddressReserve(&mut address, pages * page_bytes, 0, 0, 0) }
            .result()
            .map_err(driver("reserving addresses"))?;
        let table = PageTable { page_bytes, pages, runs: Vec::new() };
        Ok(Some(Self { context: context.clone(), address, table, most_bytes: 0, what: what.to_owned() }))
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Bytes that had memory once and have none now.
    pub(super) fn given_back_bytes(&self) -> usize {
        self.most_bytes - self.mapped_bytes()
    }

    fn mapped_bytes(&self) -> usize {
        self.table.runs.iter().map(|run| self.table.bytes(run)).sum()
    }

    /// Puts memory behind the wanted pages that have none; where it is, in bytes from the first address.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`]; then all is as it was.
    fn take(&mut self, wanted: &[bool]) -> Result<Vec<Range<usize>>, CudaError> {
        let (before, missing) = (self.table.runs.len(), self.table.missing(wanted));
        for run in &missing {
            if let Err(error) = self.map(run) {
                let taken = self.table.runs.split_off(before);
                taken.iter().try_for_each(|run| self.unmap(run))?;
                return Err(error);
            }
            self.table.runs.push(run.clone());
        }
        self.most_bytes = self.most_bytes.max(self.mapped_bytes());
        Ok(missing.iter().map(|run| run.start * self.table.page_bytes..run.end * self.table.page_bytes).collect())
    }

    /// Gives back the memory of runs of which no page is wanted. Nothing that is queued uses it.
    fn give_back(&mut self, wanted: &[bool]) -> Result<(), CudaError> {
        self.table.take_unwanted(wanted).iter().try_for_each(|run| self.unmap(run))
    }

    fn map(&self, run: &Range<usize>) -> Result<(), CudaError> {
        let bytes = self.table.bytes(run);
        let refused = |free_bytes| CudaError::OutOfMemory { bytes, what: self.what.clone(), free_bytes };
        self.context.allocations().take(&self.what, bytes).map_err(refused)?;
        self.map_uncounted(run, bytes).map_err(|error| {
            self.context.allocations().give_back(&self.what, bytes);
            match error {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => refused(result::mem_get_info().map_or(0, |(free, _)| free)),
                other => driver("mapping memory")(DriverError(other)),
            }
        })
    }

    fn map_uncounted(&self, run: &Range<usize>, bytes: usize) -> Result<(), sys::CUresult> {
        let done = |code: sys::CUresult| if code == sys::CUresult::CUDA_SUCCESS { Ok(()) } else { Err(code) };
        let (properties, address) = (properties(&self.context), self.address_of(run));
        let mut handle = 0;
        // SAFETY: both pointers are of locals of the right types; the handle is released below.
        done(unsafe { sys::cuMemCreate(&mut handle, bytes, &properties, 0) })?;
        // SAFETY: the range is of whole pages, reserved by this value, and has no memory yet.
        let mapped = done(unsafe { sys::cuMemMap(address, bytes, 0, handle, 0) });
        // SAFETY: `cuMemCreate` gave the handle. What is mapped keeps its memory without it.
        let _ = unsafe { sys::cuMemRelease(handle) };
        mapped?;
        let access = sys::CUmemAccessDesc {
            location: properties.location,
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the range was just mapped whole; the pointer is of a local.
        done(unsafe { sys::cuMemSetAccess(address, bytes, &access, 1) }).inspect_err(|_| {
            // SAFETY: as above, and nothing uses it.
            let _ = unsafe { sys::cuMemUnmap(address, bytes) };
        })
    }

    fn unmap(&self, run: &Range<usize>) -> Result<(), CudaError> {
        let bytes = self.table.bytes(run);
        // SAFETY: the range was mapped whole by `map`, and the stream has passed whatever used it.
        unsafe { sys::cuMemUnmap(self.address_of(run), bytes) }.result().map_err(driver("giving memory back"))?;
        self.context.allocations().give_back(&self.what, bytes);
        Ok(())
    }

    fn address_of(&self, run: &Range<usize>) -> u64 {
        self.address + (run.start * self.table.page_bytes) as u64
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // Unlike freeing, unmapping does not wait for what uses the memory.
        if self.context.bind().is_ok() && result::ctx::synchronize().is_ok() {
            let _ = self.give_back(&vec![false; self.table.pages]);
            // SAFETY: `cuMemAddressReserve` gave the range, and nothing is mapped to it any more.
            let _ = unsafe { sys::cuMemAddressFree(self.address, self.table.pages * self.table.page_bytes) };
        }
    }
}

/// Ordinary memory of the context's GPU.
fn properties(context: &Context) -> sys::CUmemAllocationProp {
    sys::CUmemAllocationProp {
        type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
        location: sys::CUmemLocation {
            type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: context.device(),
        },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

impl Gpu {
    /// A tensor of zeros `[parts * rows, columns]` whose parts [`Self::resize_parts`] makes smaller, down to `least` rows,
    /// where the driver can.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn zeros_in_parts(
        &self,
        parts: PartRows,
        columns: usize,
        dtype: DType,
        what: &str,
    ) -> Result<DeviceTensor, CudaError> {
        match self.zeros_in_pages(parts, columns, dtype, what) {
            Ok(Some(tensor)) => return Ok(tensor),
            Ok(None) => {}
            Err(CudaError::Driver { call, message }) => {
                tracing::warn!(call, message, what, "memory is taken whole, and cannot be given back in parts");
            }
            Err(error) => return Err(error),
        }
        self.zeros(parts.parts * parts.rows, columns, dtype, what)
    }

    fn zeros_in_pages(
        &self,
        PartRows { parts, rows, least }: PartRows,
        columns: usize,
        dtype: DType,
        what: &str,
    ) -> Result<Option<DeviceTensor>, CudaError> {
        let bytes = parts * rows * columns * dtype.size();
        let Some(pages) = Pages::reserve(self.context(), bytes, what)? else { return Ok(None) };
        let tensor = DeviceTensor::over(self.context(), pages, parts * rows, columns, dtype);
        // What stays comes first, so that the rest lies in runs of its own.
        self.resize_parts(&tensor, parts, least)?;
        self.resize_parts(&tensor, parts, rows)?;
        Ok(Some(tensor))
    }

    /// Leaves memory behind the first `rows` of each of the `parts` of `tensor` and takes what is missing of it, zeroed.
    /// Waits until the stream has passed what may use the rest.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], and all is as it was; what the driver says.
    pub fn resize_parts(&self, tensor: &DeviceTensor, parts: usize, rows: usize) -> Result<(), CudaError> {
        let Some(mut pages) = tensor.pages() else { return Ok(()) };
        self.bind()?;
        let part_bytes = tensor.bytes() / parts;
        let bytes = rows * tensor.columns() * tensor.dtype().size();
        let wanted = pages.table.of_parts(parts, part_bytes, bytes);
        self.synchronize()?;
        for fresh in pages.take(&wanted)? {
            let start = pages.address() + fresh.start as u64;
            // SAFETY: memory was just put behind the range, whole.
            unsafe { result::memset_d8_async(start, 0, fresh.len(), self.stream()) }
                .map_err(driver("clearing memory"))?;
        }
        pages.give_back(&wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_what_no_part_needs() {
        let mut table = PageTable { page_bytes: 8, pages: 8, runs: Vec::new() };
        // Three parts of 20 bytes: they begin at 0, 20 and 40, inside of pages.
        let least = table.of_parts(3, 20, 5);
        assert_eq!(least, [true, false, true, true, false, true, false, false]);
        let first = table.missing(&least);
        assert_eq!(first, [0..1, 2..4, 5..6]);
        table.runs.extend(first);
        let all = table.of_parts(3, 20, 20);
        assert_eq!(all, [true; 8]);
        let rest = table.missing(&all);
        assert_eq!(rest, [1..2, 4..5, 6..8]);
        table.runs.extend(rest);
        assert!(table.missing(&all).is_empty());
        // Between the two: a run leaves whole or not at all.
        let some = table.of_parts(3, 20, 10);
        let gone = table.take_unwanted(&some);
        assert_eq!((gone.len(), gone[0].clone()), (1, 4..5));
        assert_eq!(table.take_unwanted(&least), [1..2, 6..8]);
        assert!(table.take_unwanted(&least).is_empty());
        assert_eq!(table.missing(&some), [1..2, 6..7]);
        assert_eq!(table.take_unwanted(&[false; 8]), [0..1, 2..4, 5..6]);
    }

    #[test]
    fn parts_without_rows_need_no_pages() {
        let table = PageTable { page_bytes: 8, pages: 3, runs: Vec::new() };
        assert_eq!(table.of_parts(2, 12, 0), [false; 3]);
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn cuda_parts_give_memory_back_keep_what_stays_and_come_back_as_zeros() {
        const MIB: usize = 1 << 20;
        let gpu = Gpu::open(0).expect("an NVIDIA GPU");
        let free = || gpu.memory().expect("an answer").0;
        let free_before = free();
        let counted = || gpu.allocated().0 as usize;
        // By our count, and by the driver's, whose tables of pages may take some more.
        let check = |bytes: usize| {
            let of_driver = free_before.saturating_sub(free());
            assert!(
                counted() == bytes && of_driver.abs_diff(bytes) <= 8 * MIB,
                "{bytes} bytes, by the driver {of_driver}"
            );
        };
        // Rows of 64 KiB; parts of 100.5 MiB, which begin inside of pages.
        let parts = PartRows { parts: 3, rows: 1608, least: 100 };
        let row = 64 << 10;
        let tensor = gpu.zeros_in_parts(parts, row, DType::U8, "parts").expect("memory");
        assert!(tensor.can_shrink(), "the driver knows virtual memory");
        let whole = 302 * MIB;
        check(whole);
        assert!(gpu.download(&tensor).expect("a copy").iter().all(|byte| *byte == 0));
        let ones = vec![1; tensor.bytes()];
        gpu.upload(&tensor, &ones).expect("a copy");

        gpu.resize_parts(&tensor, parts.parts, parts.least).expect("memory is given back");
        // 6.25 MiB of each part stay, in whole pages: 0 to 8, 100 to 108 and 200 to 208 MiB.
        assert_eq!(tensor.given_back_bytes(), whole - 24 * MIB);
        check(24 * MIB);
        for part in 0..parts.parts {
            let kept = gpu.download(&tensor.slice(part * parts.rows, parts.least)).expect("a copy");
            assert!(kept.iter().all(|byte| *byte == 1), "part {part}");
        }

        gpu.resize_parts(&tensor, parts.parts, parts.rows).expect("memory");
        assert_eq!(tensor.given_back_bytes(), 0);
        check(whole);
        let bytes = gpu.download(&tensor).expect("a copy");
        for part in 0..parts.parts {
            let (kept, fresh) = bytes[part * parts.rows * row..][..parts.rows * row].split_at(parts.least * row);
            assert!(kept.iter().all(|byte| *byte == 1), "part {part}");
            // Up to the next part's first page, and behind this one's last.
            assert!(fresh[2 * MIB..fresh.len() - 2 * MIB].iter().all(|byte| *byte == 0), "part {part}");
        }
        drop((tensor, bytes));
        check(0);

        // What the limit refuses leaves all as it was.
        let tensor = gpu.zeros_in_parts(parts, row, DType::U8, "parts").expect("memory");
        gpu.resize_parts(&tensor, parts.parts, parts.least).expect("memory is given back");
        gpu.limit_memory((64 * MIB) as u64);
        let refused = gpu.resize_parts(&tensor, parts.parts, parts.rows);
        assert!(matches!(refused, Err(CudaError::OutOfMemory { .. })), "{refused:?}");
        assert_eq!(counted(), 24 * MIB);
    }
}
