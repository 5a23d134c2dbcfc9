//! All parameters of a model in one flat f32 buffer, the matrices that products read, and their packed bf16 copies.
//! Knows names and shapes; knows no architecture.
//! Cost: 4 bytes a parameter, and in bf16 mode 2 more for each packed copy (forward, backward).

use std::ops::Range;

use foveate_kernels::cpu::adamw::{Numbers, adamw_step_packed};
use foveate_kernels::cpu::matmul::PackedMatrix;
use foveate_kernels::memory;
use foveate_kernels::rng::{Purpose, Stream};
use rayon::prelude::*;

use crate::master::Master;
use crate::on_device::DeviceWeights;
use crate::packed::{self, Packed};

/// Which third of a vision-language model a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The image tower.
    Vision,
    /// What maps image features into the decoder's width.
    Connector,
    /// The decoder, its embedding and head.
    Language,
}

/// Which parts learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trainable {
    /// Train the image tower. Off saves time and memory, and is right when the tower already sees what is asked.
    pub vision: bool,
    /// Train the connector.
    pub connector: bool,
    /// Train the decoder.
    pub language: bool,
}

impl Trainable {
    /// Everything learns.
    pub const ALL: Trainable = Trainable { vision: true, connector: true, language: true };
    /// Nothing learns.
    pub const NONE: Trainable = Trainable { vision: false, connector: false, language: false };

    /// Whether parameters of `part` learn.
    pub fn includes(&self, part: Part) -> bool {
        match part {
            Part::Vision => self.vision,
            Part::Connector => self.connector,
            Part::Language => self.language,
        }
    }
}

/// How a checkpoint spells the beginnings of tensor names: ours and its. The first that fits counts; names that none
/// fits are the same.
pub type Naming = &'static [(&'static str, &'static str)];

/// The name of a tensor as a checkpoint spells it.
pub fn stored_name(name: &str, naming: Naming) -> String {
    let fits = naming.iter().find_map(|(ours, its)| Some((its, name.strip_prefix(ours)?)));
    fits.map_or_else(|| name.to_string(), |(its, tail)| format!("{its}{tail}"))
}

/// One named tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamInfo {
    /// Name in a loaded `transformers` model of version 5; see [`Naming`] for other spellings.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<usize>,
    /// First element in the flat buffer.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// Part of the model.
    pub part: Part,
    /// Whether weight decay applies (matrices and embeddings, not norms and biases).
    pub decay: bool,
    /// How a fresh model is filled.
    pub fill: Fill,
    /// Whether no forward pass reads it: it is loaded and saved, and never learns.
    pub unread: bool,
}

/// How a fresh parameter is filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Normal with this standard deviation.
    Normal(f32),
    /// A constant.
    Constant(f32),
}

/// Index of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(pub usize);

/// Index of a matrix: one or several weights with the same input, stacked by rows, used in one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearId(pub usize);

/// A matrix `[n, k]` inside the flat buffer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// First element in the flat buffer.
    pub offset: usize,
    /// Output width.
    pub n: usize,
    /// Input width.
    pub k: usize,
    /// First element of the stacked biases, `n` of them.
    pub bias: Option<usize>,
    /// Parameters that it is made of.
    pub params: Vec<ParamId>,
    /// Parameters of the bias.
    pub bias_params: Vec<ParamId>,
    /// Whether it is another view of a table (a head tied to the embedding).
    pub is_view: bool,
}

impl Linear {
    /// Where it lies in the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.n * self.k
    }

    /// Whether any of its weights lie in `range`.
    pub fn overlaps(&self, range: &Range<usize>) -> bool {
        self.offset < range.end && range.start < self.range().end
    }
}

/// Which inputs of adapters are left out while a batch is learned: every draw is keyed, so the backward pass repeats
/// the forward pass's, whatever is computed in between.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of the inputs that is left out; the others are scaled up by `1 / (1 - rate)`.
    pub rate: f32,
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser step.
    pub step: u32,
    /// Forward pass within the step.
    pub batch: u32,
}

/// A low-rank adapter beside some rows of a matrix: `y[:, column..column + n] += scale * (x·Aᵀ)·Bᵀ`.
///
/// LoRA, Hu et al. 2021, section 4.1; `scale = alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA (Kalajdzievski 2023).
#[derive(Clone, Copy, Debug)]
pub struct Adapter {
    /// `[rank, k]`.
    pub a: LinearId,
    /// `[n, rank]`.
    pub b: LinearId,
    /// First output column.
    pub column: usize,
    /// Number of output columns.
    pub n: usize,
    /// Rank.
    pub rank: usize,
    /// Factor.
    pub scale: f32,
}

/// Declares parameters in the order in which they lie in memory.
#[derive(Default)]
pub struct Layout {
    infos: Vec<ParamInfo>,
    linears: Vec<Linear>,
    adapters: Vec<(LinearId, Adapter)>,
    len: usize,
    unread: bool,
}

/// Rows of the flat buffer begin at multiples of a cache line.
const ALIGN: usize = 16;

impl Layout {
    fn push(&mut self, name: &str, shape: &[usize], part: Part, decay: bool, fill: Fill) -> ParamId {
        let len = shape.iter().product();
        self.infos.push(ParamInfo {
            name: name.to_string(),
            shape: shape.to_vec(),
            offset: self.len,
            len,
            part,
            decay,
            fill,
            unread: self.unread,
        });
        self.len += len;
        ParamId(self.infos.len() - 1)
    }

    /// Declares tensors that checkpoints of a family hold and its forward pass does not read.
    pub fn unread<T>(&mut self, declare: impl FnOnce(&mut Layout) -> T) -> T {
        let before = std::mem::replace(&mut self.unread, true);
        let declared = declare(self);
        self.unread = before;
        declared
    }

    fn align(&mut self) {
        self.len = self.len.next_multiple_of(ALIGN);
    }

    /// A vector (norm weight, bias that stands alone) or an embedding table.
    pub fn tensor(&mut self, name: &str, shape: &[usize], part: Part, decay: bool, fill: Fill) -> ParamId {
        self.align();
        self.push(name, shape, part, decay, fill)
    }

    /// A matrix of stacked weights `(name, rows)` over `k` inputs; `.weight` and `.bias` are appended to the names.
    /// Fresh weights have the standard deviation `gain / sqrt(k)`.
    pub fn linear(&mut self, names: &[(String, usize)], k: usize, bias: bool, part: Part, gain: f32) -> LinearId {
        let shapes: Vec<_> = names.iter().map(|(name, rows)| (name.clone(), vec![*rows, k])).collect();
        self.linear_shaped(&shapes, k, bias, part, gain)
    }

    /// Like [`Layout::linear`], with the shapes as the checkpoint has them (a convolution's weight is a matrix too).
    pub fn linear_shaped(
        &mut self,
        names: &[(String, Vec<usize>)],
        k: usize,
        bias: bool,
        part: Part,
        gain: f32,
    ) -> LinearId {
        // Scaled by the number of inputs: a fixed 0.02 leaves narrow models nearly silent at birth.
        let std = gain / (k as f32).sqrt();
        self.align();
        let offset = self.len;
        let params: Vec<_> = names
            .iter()
            .map(|(name, shape)| self.push(&format!("{name}.weight"), shape, part, true, Fill::Normal(std)))
            .collect();
        let n = (self.len - offset) / k;
        self.align();
        let bias_offset = self.len;
        let bias_params: Vec<_> = if bias {
            names
                .iter()
                .map(|(name, shape)| self.push(&format!("{name}.bias"), &shape[..1], part, false, Fill::Constant(0.0)))
                .collect()
        } else {
            Vec::new()
        };
        let bias = bias.then_some(bias_offset);
        self.linears.push(Linear { offset, n, k, bias, params, bias_params, is_view: false });
        LinearId(self.linears.len() - 1)
    }

    /// The matrix view of a table that already exists (a head tied to the embedding).
    pub fn linear_from(&mut self, table: ParamId) -> LinearId {
        let info = &self.infos[table.0];
        let (n, k) = (info.shape[0], info.len / info.shape[0]);
        self.linears.push(Linear {
            offset: info.offset,
            n,
            k,
            bias: None,
            params: vec![table],
            bias_params: Vec::new(),
            is_view: true,
        });
        LinearId(self.linears.len() - 1)
    }

    /// Everything declared so far.
    pub fn infos(&self) -> &[ParamInfo] {
        &self.infos
    }

    /// Every matrix declared so far.
    pub fn linears(&self) -> &[Linear] {
        &self.linears
    }

    /// Names of the weights that a matrix is stacked from, with their first row and number of rows.
    pub fn stacked(&self, id: LinearId) -> Vec<(String, usize, usize)> {
        let linear = &self.linears[id.0];
        let mut column = 0;
        linear
            .params
            .iter()
            .map(|param| {
                let info = &self.infos[param.0];
                let first = column;
                column += info.len / linear.k;
                (info.name.clone(), first, column - first)
            })
            .collect()
    }

    /// The matrices declared so far that may have adapters, and the part that each belongs to: no views of tables, no
    /// convolutions, whose adapters have other shapes on disk, and none that no forward pass reads.
    pub fn matrices(&self) -> Vec<(LinearId, Part)> {
        let plain = |linear: &Linear| {
            let read = |param: &ParamId| self.infos[param.0].shape.len() == 2 && !self.infos[param.0].unread;
            !linear.is_view && linear.params.iter().all(read)
        };
        let part = |linear: &Linear| self.infos[linear.params[0].0].part;
        let all = self.linears.iter().enumerate().filter(|(_, linear)| plain(linear));
        all.map(|(index, linear)| (LinearId(index), part(linear))).collect()
    }

    /// Puts an adapter beside the weight `name` (without `.weight`) of a matrix; A starts random, B zero, so that
    /// nothing changes at first.
    pub fn adapter(&mut self, id: LinearId, name: &str, column: usize, n: usize, rank: usize, scale: f32) {
        let linear = &self.linears[id.0];
        let (k, part) = (linear.k, self.infos[linear.params[0].0].part);
        // Kaiming-uniform with a = sqrt(5) has this gain; PEFT draws A so.
        let gain = (1f32 / 3.0).sqrt();
        let a = self.linear(&[(format!("{name}.lora_A"), rank)], k, false, part, gain);
        let b = self.linear(&[(format!("{name}.lora_B"), n)], rank, false, part, 0.0);
        self.adapters.push((id, Adapter { a, b, column, n, rank, scale }));
    }

    /// Allocates the parameters, all zero.
    pub fn build(self) -> Weights {
        self.build_on(Vec::new())
    }

    /// Allocates the parameters behind those of `master`, which keep their values.
    pub fn build_on(mut self, mut master: Vec<f32>) -> Weights {
        self.align();
        let base = if master.is_empty() { self.len } else { master.len() };
        if master.is_empty() {
            master = memory::zeroed(self.len);
        } else {
            master.resize(self.len, 0.0);
        }
        let packed = self.linears.iter().map(|_| Packed::default()).collect();
        let mut owners = vec![Vec::new(); self.infos.len()];
        for (index, linear) in self.linears.iter().enumerate() {
            for param in &linear.params {
                owners[param.0].push(index);
            }
        }
        let mut adapters = vec![Vec::new(); self.linears.len()];
        for (id, adapter) in self.adapters {
            adapters[id.0].push(adapter);
        }
        Weights {
            adapters,
            adapters_on: true,
            trainable: self.infos.iter().map(|info| !info.unread).collect(),
            infos: self.infos,
            linears: self.linears,
            master: Master::new(master),
            packed,
            owners,
            base,
            dropout: None,
            device: None,
        }
    }
}

/// The parameters of a model.
pub struct Weights {
    infos: Vec<ParamInfo>,
    linears: Vec<Linear>,
    master: Master,
    trainable: Vec<bool>,
    packed: Vec<Packed>,
    owners: Vec<Vec<usize>>,
    adapters: Vec<Vec<Adapter>>,
    adapters_on: bool,
    base: usize,
    dropout: Option<Dropout>,
    device: Option<DeviceWeights>,
}

impl Weights {
    /// The copy on a GPU, if the model works on one.
    pub(crate) fn device_weights(&self) -> Option<&DeviceWeights> {
        self.device.as_ref()
    }

    /// Works on a GPU from now on, or on the CPU.
    pub(crate) fn set_device_weights(&mut self, device: Option<DeviceWeights>) {
        self.master();
        self.device = device;
        self.packed.iter_mut().for_each(|packed| *packed = Packed::default());
    }

    /// Gives a GPU's memory back until the weights are next used there.
    pub(crate) fn forget_on_device(&mut self) {
        self.master();
        if let Some(device) = &mut self.device {
            device.forget();
        }
    }

    /// A GPU has newer values of `range`.
    pub(crate) fn fall_behind(&mut self, range: Range<usize>) {
        self.master.falls_behind(range);
    }

    /// The flat buffer with everything that a GPU has newer, to be changed in `range`.
    fn changing(&mut self, range: Range<usize>) -> &mut [f32] {
        self.master();
        if let Some(device) = &mut self.device {
            device.changed(range);
        }
        self.master.get_mut()
    }

    /// Names, shapes and places, in memory order.
    pub fn infos(&self) -> &[ParamInfo] {
        &self.infos
    }

    /// Length of the flat buffer.
    pub fn num_values(&self) -> usize {
        self.master.len()
    }

    /// Every matrix.
    pub(crate) fn linears(&self) -> &[Linear] {
        &self.linears
    }

    /// The flat buffer.
    pub fn master(&self) -> &[f32] {
        self.master.get(|range, values| {
            self.device.as_ref().expect("only a device moves on").fetch(range, values);
        })
    }

    /// The flat buffer, to be changed; all packed copies are made anew afterwards.
    pub fn master_mut(&mut self) -> &mut [f32] {
        for index in 0..self.packed.len() {
            self.forget_packed(index);
        }
        self.changing(0..self.master.len())
    }

    /// Part of the flat buffer, to be changed; only packed copies of matrices in it are made anew.
    pub fn range_mut(&mut self, range: Range<usize>) -> &mut [f32] {
        for index in 0..self.linears.len() {
            if self.linears[index].overlaps(&range) {
                self.forget_packed(index);
            }
        }
        &mut self.changing(range.clone())[range]
    }

    /// One step of AdamW for part of the flat buffer, on the CPU: `g` its gradients, `m` and `v` its moments. Packed copies
    /// that products have used get the new values in the same pass; the others are made anew when needed.
    pub fn adamw_step(&mut self, range: Range<usize>, g: &[f32], [m, v]: [&mut [f32]; 2], numbers: &Numbers) {
        self.changing(range.clone());
        let mut matrices = packed::following(&self.linears, &mut self.packed, &range);
        adamw_step_packed(&mut self.master.get_mut()[range], g, m, v, numbers, &mut matrices);
    }

    /// Where in the flat buffer the adapters lie; empty if there are none.
    pub fn adapter_range(&self) -> Range<usize> {
        self.base..self.master.len()
    }

    /// Exchanges the adapters' values, for instance with those that they had when a stage began.
    pub fn swap_adapters(&mut self, values: &mut [f32]) {
        self.range_mut(self.adapter_range()).swap_with_slice(values);
    }

    /// Hands the flat buffer out and ends.
    pub fn into_master(self) -> Vec<f32> {
        self.master();
        self.master.into_values()
    }

    /// Leaves out inputs of the adapters in all passes from now on, or in none.
    pub fn set_dropout(&mut self, dropout: Option<Dropout>) {
        self.dropout = dropout.filter(|dropout| dropout.rate > 0.0);
    }

    /// Whether passes leave out inputs of the adapters.
    pub(crate) fn has_dropout(&self) -> bool {
        self.dropout.is_some()
    }

    /// The draws that decide which inputs of adapter matrix `a` are left out, and the share, if any are.
    pub fn dropout_of(&self, a: LinearId) -> Option<(f32, Stream)> {
        let dropout = self.dropout?;
        let stream = Stream::new(dropout.seed, Purpose::Dropout, dropout.step, dropout.batch, a.0 as u32);
        Some((dropout.rate, stream))
    }

    /// One parameter.
    pub fn tensor(&self, id: ParamId) -> &[f32] {
        let info = &self.infos[id.0];
        &self.master()[info.offset..info.offset + info.len]
    }

    /// One parameter, to be changed.
    pub fn tensor_mut(&mut self, id: ParamId) -> &mut [f32] {
        for position in 0..self.owners[id.0].len() {
            self.forget_packed(self.owners[id.0][position]);
        }
        let range = self.infos[id.0].offset..self.infos[id.0].offset + self.infos[id.0].len;
        &mut self.changing(range.clone())[range]
    }

    fn forget_packed(&mut self, index: usize) {
        self.packed[index].forget();
    }

    /// A matrix.
    pub fn linear(&self, id: LinearId) -> &Linear {
        &self.linears[id.0]
    }

    /// The matrix's values, row-major `[n, k]`.
    pub fn matrix(&self, id: LinearId) -> &[f32] {
        let linear = &self.linears[id.0];
        &self.master()[linear.offset..linear.offset + linear.n * linear.k]
    }

    /// The stacked bias.
    pub fn bias(&self, id: LinearId) -> Option<&[f32]> {
        let linear = &self.linears[id.0];
        linear.bias.map(|offset| &self.master()[offset..offset + linear.n])
    }

    /// Operand of `x·Wᵀ`.
    pub fn packed_forward(&self, id: LinearId) -> &PackedMatrix {
        let linear = &self.linears[id.0];
        self.packed[id.0].forward.get(linear.k, linear.n, |packed| packed.pack_transposed(self.matrix(id)))
    }

    /// Operand of `dy·W`.
    pub fn packed_backward(&self, id: LinearId) -> &PackedMatrix {
        let linear = &self.linears[id.0];
        self.packed[id.0].backward.get(linear.n, linear.k, |packed| packed.pack(self.matrix(id)))
    }

    /// Chooses which parts learn.
    pub fn set_trainable(&mut self, trainable: Trainable) {
        // With adapters in place they alone learn.
        let adapted = self.adapters.iter().any(|adapters| !adapters.is_empty());
        for (flag, info) in self.trainable.iter_mut().zip(&self.infos) {
            *flag = trainable.includes(info.part) && !info.unread && (!adapted || info.name.contains(".lora_"));
        }
    }

    /// Whether a parameter learns.
    pub fn is_trainable(&self, id: ParamId) -> bool {
        self.trainable[id.0]
    }

    /// Whether any weight of a matrix itself learns.
    pub fn linear_is_trainable(&self, id: LinearId) -> bool {
        let linear = &self.linears[id.0];
        linear.params.iter().chain(&linear.bias_params).any(|param| self.trainable[param.0])
    }

    /// The adapters beside a matrix; none while they are switched off.
    pub fn adapters(&self, id: LinearId) -> &[Adapter] {
        if self.adapters_on { &self.adapters[id.0] } else { &[] }
    }

    /// Switches all adapters on or off (off: the model underneath, which is the natural reference policy).
    pub fn set_adapters_on(&mut self, on: bool) {
        self.adapters_on = on;
    }

    /// Adds every adapter into its matrix and sets it back to zero: same function, no extra products.
    pub fn merge_adapters(&mut self) {
        self.changing(0..self.master.len());
        for index in 0..self.linears.len() {
            for adapter in self.adapters[index].clone() {
                let (k, rank) = (self.linears[index].k, adapter.rank);
                let a = self.matrix(adapter.a).to_vec();
                let b = self.matrix(adapter.b).to_vec();
                let first = self.linears[index].offset + adapter.column * k;
                let rows = &mut self.master.get_mut()[first..first + adapter.n * k];
                rows.par_chunks_mut(k).zip(b.par_chunks(rank)).for_each(|(row, b)| {
                    for (b, a) in b.iter().zip(a.chunks(k)) {
                        row.iter_mut().zip(a).for_each(|(w, a)| *w += adapter.scale * b * a);
                    }
                });
                let zeroed = &self.linears[adapter.b.0];
                self.master.get_mut()[zeroed.offset..zeroed.offset + zeroed.n * zeroed.k].fill(0.0);
            }
        }
        for packed in &mut self.packed {
            *packed = Packed::default();
        }
    }

    /// Fills every parameter anew; the values depend on the seed and the parameter's place alone.
    pub fn fill_fresh(&mut self, seed: u64) {
        self.fill_from(0, seed);
    }

    /// The same for the adapters alone: they say nothing then.
    pub fn fill_adapters(&mut self, seed: u64) {
        self.fill_from(self.base, seed);
    }

    fn fill_from(&mut self, first: usize, seed: u64) {
        self.changing(first..self.master.len());
        for packed in &mut self.packed {
            *packed = Packed::default();
        }
        for (index, info) in self.infos.iter().enumerate().filter(|(_, info)| info.offset >= first) {
            let values = &mut self.master.get_mut()[info.offset..info.offset + info.len];
            match info.fill {
                Fill::Constant(value) => values.fill(value),
                Fill::Normal(std) => {
                    let stream = Stream::new(seed, Purpose::Initialisation, index as u32, 0, 0);
                    values.par_iter_mut().enumerate().for_each(|(i, value)| *value = std * stream.normal(i as u32));
                }
            }
        }
    }
}
