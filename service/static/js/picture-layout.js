// Where everything of the picture stands, as plain numbers; nothing here touches the page.
//
// As in the figure of the MiCS paper: a partition group is a column of its p workers; a replication
// group is a row, the workers of one rank; nodes are boxes around the workers they hold. A node that
// holds several small groups encloses their columns, a group that spans nodes encloses their boxes.
// Columns that do not fit into the width go on in another band.

const GONE = new Set(["left", "lost"]);
const MAX_GONE = 6;

const LEFT = 52;
const HEAD = 38;
const FOOT = 22;
const BAND_GAP = 14;

/**
 * @param {object[]} groups `GroupStatus` of the API
 * @param {number} size workers of a partition group
 * @param {number} width pixels to draw in
 * @returns {{width: number, height: number, columns: object[], nodes: object[], rails: object[],
 *            isCompact: boolean, isTight: boolean}}
 */
export function layOut(groups, size, width) {
  const shown = inOrder(groups);
  const grid = measure(shown, size, width);
  const columns = shown.map((group, index) => placeColumn(group, index, size, grid));
  const numBands = Math.max(1, Math.ceil(shown.length / grid.perBand));
  return {
    width: Math.max(width, LEFT + grid.pitch),
    isCompact: grid.isCompact,
    isTight: grid.isTight,
    height: numBands * (grid.bandHeight + BAND_GAP) - BAND_GAP,
    columns,
    nodes: placeNodes(columns, grid),
    rails: placeRails(columns, size, grid),
  };
}

/** Members first, those on one node side by side; then those on their way; the last gone ones. */
function inOrder(groups) {
  const firstOnNode = new Map();
  for (const group of groups) {
    const node = group.workers[0]?.node_id;
    if (node && !GONE.has(group.state) && !firstOnNode.has(node)) firstOnNode.set(node, group.group_id);
  }
  const key = (group) => firstOnNode.get(group.workers[0]?.node_id) ?? group.group_id;
  const byNode = (a, b) => key(a) - key(b) || a.group_id - b.group_id;
  const members = groups.filter((group) => isTraining(group)).sort(byNode);
  const coming = groups.filter((group) => !isTraining(group) && !GONE.has(group.state)).sort(byNode);
  const gone = groups.filter((group) => GONE.has(group.state)).slice(-MAX_GONE);
  return [...members, ...coming, ...gone];
}

export const isTraining = (group) => group.state === "member" || group.state === "leaving";
export const isGone = (group) => GONE.has(group.state);

function measure(groups, size, width) {
  const isCompact = groups.length > 24 || size > 8;
  const starts = new Set();
  for (const group of groups) {
    for (let rank = 1; rank < group.workers.length; rank += 1) {
      if (group.workers[rank].node_id !== group.workers[rank - 1].node_id) starts.add(rank);
    }
  }
  // Where a node ends inside a group its box needs room for its name.
  const spansNodes = starts.size > 0;
  const isTight = !spansNodes && groups.length * 70 > 8 * (width - LEFT);
  const cell = isTight ? 18 : isCompact ? 20 : 28;
  // Few groups take the room there is, many stand as close as their words allow.
  const closest = spansNodes ? 80 : isTight ? 54 : 70;
  const pitch = Math.min(104, Math.max(closest, Math.floor((width - LEFT) / groups.length)));
  const rows = [];
  let y = HEAD + cell / 2 + 10;
  for (let rank = 0; rank < size; rank += 1) {
    if (rank > 0) y += cell + 6 + (starts.has(rank) ? 26 : 0);
    rows.push(y);
  }
  const frameBottom = y + cell / 2 + (spansNodes ? 24 : 8);
  return {
    isCompact,
    isTight,
    cell,
    pitch,
    spansNodes,
    rows,
    frameTop: HEAD + 2,
    frameBottom,
    frameWidth: spansNodes ? pitch - 8 : cell + 18,
    bandHeight: frameBottom + (spansNodes ? 4 : FOOT),
    perBand: Math.max(1, Math.floor((width - LEFT) / pitch)),
  };
}

function placeColumn(group, index, size, grid) {
  const band = Math.floor(index / grid.perBand);
  const top = band * (grid.bandHeight + BAND_GAP);
  const x = LEFT + (index % grid.perBand) * grid.pitch + grid.pitch / 2;
  return {
    group,
    name: grid.isTight ? String(group.group_id) : `group ${group.group_id}`,
    band,
    x,
    top,
    frame: {
      x: x - grid.frameWidth / 2,
      y: top + grid.frameTop,
      width: grid.frameWidth,
      height: grid.frameBottom - grid.frameTop,
    },
    cells: Array.from({ length: size }, (_, rank) => ({
      rank,
      worker: group.workers[rank] ?? null,
      y: top + grid.rows[rank],
      size: grid.cell,
    })),
  };
}

/** One box for each run of workers on a node; equal runs of neighbouring columns share a box. */
function placeNodes(columns, grid) {
  const boxes = [];
  for (const column of columns) {
    if (isGone(column.group)) continue;
    for (const run of runsOf(column.group.workers)) {
      const before = boxes.find(
        (box) =>
          box.node === run.node && box.band === column.band && box.first === run.first &&
          box.last === run.last && Math.abs(box.right - column.x + grid.pitch) < 1,
      );
      if (before) before.right = column.x;
      else boxes.push({ ...run, band: column.band, left: column.x, right: column.x, top: column.top });
    }
  }
  return boxes.map((box) => boundsOf(box, grid));
}

function runsOf(workers) {
  const runs = [];
  for (const { rank, node_id: node, host } of workers) {
    const last = runs.at(-1);
    if (last?.node === node) last.last = rank;
    else runs.push({ node, host, first: rank, last: rank });
  }
  return runs;
}

function boundsOf(box, grid) {
  const half = grid.spansNodes ? grid.frameWidth / 2 - 5 : grid.pitch / 2 - 3;
  const y = grid.spansNodes
    ? box.top + grid.rows[box.first] - grid.cell / 2 - 5
    : box.top;
  const bottom = grid.spansNodes
    ? box.top + grid.rows[box.last] + grid.cell / 2 + 18
    : box.top + grid.bandHeight;
  const x = box.left - half;
  const width = box.right - box.left + 2 * half;
  return { x, y, width, height: bottom - y, node: box.node, host: box.host };
}

/** One line for each rank and band, through the groups that train. */
function placeRails(columns, size, grid) {
  const rails = [];
  const training = columns.filter((column) => isTraining(column.group));
  const lastBand = training.at(-1)?.band ?? -1;
  for (let band = 0; band <= lastBand; band += 1) {
    const here = training.filter((column) => column.band === band);
    for (let rank = 0; rank < size; rank += 1) {
      const toRight = here.at(-1).x + (band < lastBand ? grid.pitch / 2 : 0);
      rails.push({ rank, y: here[0].top + grid.rows[rank], x1: LEFT - 6, x2: toRight });
    }
  }
  return rails;
}
