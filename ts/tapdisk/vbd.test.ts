import { beforeEach, describe, expect, it } from "vitest";
import { type Area, frontEndClosed, Records, recordWords, requestKind } from "../engine/records.ts";
import { errno } from "./errno.ts";
import { Vbd } from "./vbd.ts";

const SECTORS = 10_000;

interface Request {
  frontEnd?: number;
  slot?: number;
  kind?: number;
  flags?: number;
  error?: number;
  sector?: number;
  sectors?: number;
  region?: number;
  segments?: [buffer: number, sectors: number][];
}

interface TdRequest {
  tag: number;
  kind: number;
  flags: number;
  sector: number;
  sectors: number;
  region: number;
  buffer: number;
}

/** A vbd with areas in ordinary memory, and a clock. */
class Bench {
  readonly records: Records;
  readonly vbd: Vbd;
  readonly closed: number[] = [];
  now = 5_000;

  constructor({ tdRequests = 64, responses = 64, readOnly = false } = {}) {
    let offset = 0;
    const area = (capacity: number, words: number): Area => {
      const place = { offset, capacity };
      offset += capacity * words * 4;
      return place;
    };
    const layout = {
      operations: area(1, recordWords.op),
      completions: area(1, recordWords.completion),
      tdRequests: area(tdRequests, recordWords.tdRequest),
      finished: area(64, recordWords.finished),
      requests: area(4096, recordWords.frontEndRequest),
      responses: area(responses, recordWords.response),
      staging: { offset: 0, length: 0 },
    };
    this.records = new Records({ buffer: new ArrayBuffer(offset) }, layout);
    this.vbd = new Vbd(this.records, (frontEnd) => this.closed.push(frontEnd));
    this.vbd.open({ sectors: SECTORS, readOnly });
  }

  pull(...requests: Request[]): void {
    const { words, layout } = this.records;
    requests.forEach((request, index) => {
      const segments = request.segments ?? [];
      const sector = request.sector ?? 0;
      const sum = segments.reduce((total, [, sectors]) => total + sectors, 0);
      const at = (layout.requests.offset >>> 2) + index * recordWords.frontEndRequest;
      words.set(
        [
          request.frontEnd ?? 1,
          request.slot ?? index,
          (request.kind ?? requestKind.read) | ((request.flags ?? 0) << 8) | (segments.length << 16),
          request.error ?? 0,
          sector % 2 ** 32,
          Math.floor(sector / 2 ** 32),
          request.sectors ?? sum,
          request.region ?? 3,
          ...segments.flat(),
        ],
        at,
      );
    });
    this.vbd.pullRequests(requests.length, this.now);
  }

  issue(): TdRequest[] {
    const { words, layout } = this.records;
    const count = this.vbd.issueRequests(this.now);
    return Array.from({ length: count }, (_, index) => {
      const at = (layout.tdRequests.offset >>> 2) + index * recordWords.tdRequest;
      const [tag = 0, kind = 0, low = 0, high = 0, sectors = 0, region = 0, buffer = 0] = words.subarray(at, at + 8);
      return { tag, kind: kind & 0xff, flags: kind >>> 8, sector: high * 2 ** 32 + low, sectors, region, buffer };
    });
  }

  finish(...outcomes: [tag: number, status: number][]): void {
    const { signed, layout } = this.records;
    signed.set(outcomes.flat(), layout.finished.offset >>> 2);
    this.vbd.completeTdRequests(outcomes.length, this.now);
  }

  /** Front end, slot, status, payload of each answer. */
  kick(): number[][] {
    const { signed, layout } = this.records;
    const count = this.vbd.kick();
    const at = layout.responses.offset >>> 2;
    return Array.from({ length: count }, (_, index) => [
      ...signed.subarray(at + index * recordWords.response, at + (index + 1) * recordWords.response),
    ]);
  }

  get queues(): [number, number, number, number] {
    const { newRequests, pendingRequests, failedRequests, completedRequests } = this.vbd;
    return [newRequests.length, pendingRequests.length, failedRequests.length, completedRequests.length];
  }
}

describe("Vbd", () => {
  let bench: Bench;
  beforeEach(() => {
    bench = new Bench();
  });

  it("moves a request through new, pending and completed", () => {
    bench.pull({ frontEnd: 4, slot: 9, kind: requestKind.write, flags: 1, sector: 77, segments: [[4096, 8]] });
    expect(bench.queues).toEqual([1, 0, 0, 0]);
    const issued = bench.issue();
    expect(issued).toEqual([
      { tag: issued[0]?.tag, kind: requestKind.write, flags: 1, sector: 77, sectors: 8, region: 3, buffer: 4096 },
    ]);
    expect(bench.queues).toEqual([0, 1, 0, 0]);
    bench.finish([issued[0]?.tag ?? -1, 0]);
    expect(bench.queues).toEqual([0, 0, 0, 1]);
    expect(bench.kick()).toEqual([[4, 9, 0, 0]]);
    expect(bench.vbd.idle).toBe(true);
  });

  it("passes a block status request on, and the number of its extents back", () => {
    bench.pull(
      { slot: 5, kind: requestKind.blockStatus, flags: 8, sector: 100, segments: [[4096, SECTORS - 100]] },
      { slot: 6, kind: requestKind.blockStatus, sector: 100, segments: [[8192, SECTORS]] },
    );
    const [request] = bench.issue();
    expect(request).toMatchObject({ kind: 5, flags: 8, sector: 100, sectors: SECTORS - 100, region: 3, buffer: 4096 });
    bench.finish([request?.tag ?? -1, 17]);
    expect(bench.kick()).toEqual([
      [1, 6, -errno.EINVAL, 0],
      [1, 5, 0, 17],
    ]);
  });

  it("retries block status as anything else", () => {
    bench.pull({ slot: 5, kind: requestKind.blockStatus, segments: [[0, 8]] });
    bench.finish([bench.issue()[0]?.tag ?? -1, -errno.EBUSY]);
    expect(bench.kick()).toEqual([]);
    bench.finish([bench.issue()[0]?.tag ?? -1, 1]);
    expect(bench.kick()).toEqual([[1, 5, 0, 1]]);
  });

  it("joins segments that are neighbours, and no others", () => {
    bench.pull({
      sector: 100,
      segments: [
        [0, 8],
        [4096, 1],
        [4608, 7],
        [12288, 8],
        [8192, 8],
        [12288, 8],
      ],
    });
    expect(bench.issue().map(({ sector, sectors, buffer }) => [sector, sectors, buffer])).toEqual([
      [100, 16, 0],
      [116, 8, 12288],
      [124, 16, 8192],
    ]);
  });

  it("answers a request when the last of its parts is back, with the first lasting error", () => {
    bench.pull({
      segments: [
        [0, 1],
        [1024, 1],
        [2048, 1],
        [3072, 1],
      ],
    });
    const tag = bench.issue()[0]?.tag ?? -1;
    bench.finish([tag, 0], [tag, -errno.EAGAIN], [tag, -errno.EIO]);
    expect(bench.kick()).toEqual([]);
    bench.finish([tag, -errno.ENOSPC]);
    expect(bench.kick()).toEqual([[1, 0, -errno.EIO, 0]]);
  });

  it("completes requests in the order in which they finish", () => {
    bench.pull(...[0, 1, 2].map((slot) => ({ slot, segments: [[0, 1]] as [number, number][] })));
    const tags = bench.issue().map((request) => request.tag);
    bench.finish([tags[1] ?? -1, 0], [tags[2] ?? -1, 0]);
    bench.finish([tags[0] ?? -1, 0]);
    expect(bench.kick().map(([, slot]) => slot)).toEqual([1, 2, 0]);
  });

  it("sends flushes on though they have no data", () => {
    bench.pull({ kind: requestKind.flush });
    expect(bench.issue()).toMatchObject([{ kind: requestKind.flush, sector: 0, sectors: 0 }]);
  });

  it("sends requests without segments on with their sectors", () => {
    bench.pull({ kind: requestKind.writeZeroes, flags: 2, sector: 5, sectors: 9000 });
    expect(bench.issue()).toMatchObject([{ kind: requestKind.writeZeroes, flags: 2, sector: 5, sectors: 9000 }]);
  });

  it.each<[string, Request, number]>([
    ["the front end's own error", { error: -errno.EINVAL, segments: [[0, 1]] }, errno.EINVAL],
    ["an unknown kind", { kind: 77, segments: [[0, 1]] }, errno.EOPNOTSUPP],
    ["no sectors", { sectors: 0 }, errno.EINVAL],
    ["a read over the end", { sector: SECTORS - 1, segments: [[0, 2]] }, errno.EINVAL],
    ["a write over the end", { kind: requestKind.write, sector: SECTORS - 1, segments: [[0, 2]] }, errno.ENOSPC],
    ["zeroes over the end", { kind: requestKind.writeZeroes, sector: SECTORS, sectors: 1 }, errno.ENOSPC],
    ["a discard over the end", { kind: requestKind.discard, sector: 1, sectors: SECTORS }, errno.EINVAL],
    ["a sector of 64 bits", { sector: 2 ** 64 - 2 ** 11, segments: [[0, 1]] }, errno.EINVAL],
    ["a sector that wraps at 32 bits", { sector: 2 ** 32, segments: [[0, 1]] }, errno.EINVAL],
  ])("answers %s at once", (_name, request, expected) => {
    bench.pull(request);
    expect(bench.issue()).toEqual([]);
    expect(bench.kick()).toEqual([[1, 0, -expected, 0]]);
  });

  it("serves the last sector", () => {
    bench.pull({ sector: SECTORS - 1, segments: [[0, 1]] });
    expect(bench.issue()).toHaveLength(1);
  });

  it("refuses what writes when read-only", () => {
    bench = new Bench({ readOnly: true });
    const kinds = [
      requestKind.write,
      requestKind.discard,
      requestKind.writeZeroes,
      requestKind.read,
      requestKind.flush,
    ];
    bench.pull(...kinds.map((kind) => ({ kind, segments: [[0, 1]] as [number, number][] })));
    expect(bench.kick().map(([, slot, status]) => [slot, status])).toEqual([
      [0, -errno.EPERM],
      [1, -errno.EPERM],
      [2, -errno.EPERM],
    ]);
    expect(bench.issue()).toHaveLength(2);
  });

  it("retries EBUSY in the next turn, EAGAIN and EINTR after a second", () => {
    bench.pull({ slot: 0, segments: [[0, 1]] }, { slot: 1, segments: [[0, 1]] }, { slot: 2, segments: [[0, 1]] });
    const [busy, again, interrupted] = bench.issue().map((request) => request.tag);
    bench.finish([again ?? -1, -errno.EAGAIN], [busy ?? -1, -errno.EBUSY], [interrupted ?? -1, -errno.EINTR]);
    expect(bench.queues).toEqual([0, 0, 3, 0]);
    expect(bench.kick()).toEqual([]);
    expect(bench.vbd.timeout(bench.now)).toBe(0);
    expect(bench.issue().map((request) => request.tag)).toEqual([busy]);
    expect(bench.vbd.timeout(bench.now)).toBe(1000);
    bench.now += 999;
    expect(bench.issue()).toEqual([]);
    bench.now += 1;
    expect(bench.vbd.timeout(bench.now)).toBe(0);
    expect(bench.issue().map((request) => request.tag)).toEqual([again, interrupted]);
    bench.finish([again ?? -1, 0], [interrupted ?? -1, 0], [busy ?? -1, 0]);
    expect(bench.kick().map(([, slot, status]) => [slot, status])).toEqual([
      [1, 0],
      [2, 0],
      [0, 0],
    ]);
    expect(bench.vbd.timeout(bench.now)).toBe(Number.POSITIVE_INFINITY);
  });

  it("issues failed requests before new ones", () => {
    bench.pull({ slot: 0, segments: [[0, 1]] });
    const [first] = bench.issue().map((request) => request.tag);
    bench.finish([first ?? -1, -errno.EBUSY]);
    bench.pull({ slot: 1, segments: [[512, 1]] });
    expect(bench.issue().map((request) => request.buffer)).toEqual([0, 512]);
  });

  it("gives up 120 seconds after a request came", () => {
    bench.pull({ segments: [[0, 1]] });
    const start = bench.now;
    let attempts = 0;
    while (bench.queues[3] === 0) {
      for (const request of bench.issue()) {
        attempts++;
        bench.finish([request.tag, -errno.EAGAIN]);
      }
      bench.now += 500;
    }
    expect(attempts).toBe(121);
    expect(bench.now - start).toBe(120_500);
    expect(bench.kick()).toEqual([[1, 0, -errno.EAGAIN, 0]]);
  });

  it("doesn't retry when the disk is about to be closed", () => {
    bench.pull({ slot: 0, segments: [[0, 1]] }, { slot: 1, segments: [[0, 1]] });
    const [first, second] = bench.issue().map((request) => request.tag);
    bench.finish([first ?? -1, -errno.EAGAIN]);
    bench.vbd.stopRetrying();
    bench.finish([second ?? -1, -errno.EBUSY]);
    expect(bench.kick().map(([, slot, status]) => [slot, status])).toEqual([
      [0, -errno.EAGAIN],
      [1, -errno.EBUSY],
    ]);
    expect(bench.vbd.idle).toBe(true);
  });

  it("keeps requests that find no room, and says that there is something to do", () => {
    bench = new Bench({ tdRequests: 30, responses: 3 });
    bench.pull(...Array.from({ length: 40 }, (_, slot) => ({ slot, segments: [[0, 1]] as [number, number][] })));
    const order: number[] = [];
    for (let turn = 0; order.length < 40; turn++) {
      expect(turn).toBeLessThan(40);
      bench.finish(...bench.issue().map((request): [number, number] => [request.tag, 0]));
      order.push(...bench.kick().map(([, slot]) => slot ?? -1));
      expect(bench.vbd.timeout(bench.now)).toBe(order.length < 40 ? 0 : Number.POSITIVE_INFINITY);
    }
    expect(order).toEqual(Array.from({ length: 40 }, (_, slot) => slot));
  });

  it("tells when a front end has gone, and answers nothing to that", () => {
    bench.pull({ frontEnd: 12, kind: frontEndClosed });
    expect(bench.closed).toEqual([12]);
    expect(bench.vbd.idle).toBe(true);
  });

  it("has room for whatever front ends have in flight", () => {
    bench = new Bench({ tdRequests: 5000, responses: 5000 });
    for (let round = 0; round < 3; round++) {
      bench.pull(
        ...Array.from({ length: 3000 }, (_, slot) => ({
          slot,
          sector: slot,
          segments: [[512 * slot, 1]] as [number, number][],
        })),
      );
      const issued = bench.issue();
      expect(new Set(issued.map((request) => request.tag)).size).toBe(3000);
      expect(issued.every(({ sector, buffer }, slot) => sector === slot && buffer === 512 * slot)).toBe(true);
      for (const request of issued) {
        bench.vbd.completeTdRequest(request.tag, 0, bench.now);
      }
      expect(bench.kick().map(([, slot]) => slot)).toEqual(issued.map((_, slot) => slot));
    }
  });
});
