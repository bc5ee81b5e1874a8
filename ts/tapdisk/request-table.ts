/**
 * Storage for the requests of a vbd and for the queues that they stand in, preallocated: a request is an index, and
 * moving it from queue to queue changes a few numbers.
 */

const NONE = -1;

function enlarged<T extends { readonly length: number; set(from: T): void }>(from: T, to: T): T {
  to.set(from);
  return to;
}

/** Requests by index, as parallel arrays. Every request is in exactly one {@link Queue}, or free. */
export class RequestTable {
  /** Words of a request's data parts: pairs of buffer and sectors. */
  readonly partWords: number;
  frontEnd: Uint32Array;
  slot: Uint32Array;
  /** Kind | flags << 8, as a td request has it. */
  kind: Uint32Array;
  /** First sector. Exact: it was checked against the disk's capacity. */
  sector: Float64Array;
  region: Uint32Array;
  /** How many parts count. */
  partCount: Uint32Array;
  /** `partWords` words for each request. */
  parts: Uint32Array;
  /** Td requests in the engine. */
  tdPending: Uint32Array;
  /** 0, the negative errno value that it will be answered with, or of block status the number of extents. */
  status: Int32Array;
  /** When it was pulled, and when it is to be issued again, in milliseconds of the vbd's clock. */
  arrived: Float64Array;
  due: Float64Array;
  /** Links of the queue that the request stands in. */
  next: Int32Array;
  previous: Int32Array;
  #capacity: number;
  /** First of the free requests, linked by `next`. */
  #free = NONE;

  constructor(capacity: number, maxParts: number) {
    this.partWords = 2 * maxParts;
    this.frontEnd = new Uint32Array(capacity);
    this.slot = new Uint32Array(capacity);
    this.kind = new Uint32Array(capacity);
    this.sector = new Float64Array(capacity);
    this.region = new Uint32Array(capacity);
    this.partCount = new Uint32Array(capacity);
    this.parts = new Uint32Array(capacity * this.partWords);
    this.tdPending = new Uint32Array(capacity);
    this.status = new Int32Array(capacity);
    this.arrived = new Float64Array(capacity);
    this.due = new Float64Array(capacity);
    this.next = new Int32Array(capacity);
    this.previous = new Int32Array(capacity);
    this.#capacity = capacity;
    this.#addFree(0);
  }

  /** A free request. The table doubles when there is none: front ends bound what they have in flight, so that ends. */
  allocate(): number {
    if (this.#free === NONE) {
      this.#grow();
    }
    const request = this.#free;
    this.#free = this.next[request] as number;
    return request;
  }

  /** Gives a request back that stands in no queue. */
  release(request: number): void {
    this.next[request] = this.#free;
    this.#free = request;
  }

  #grow(): void {
    const old = this.#capacity;
    const capacity = 2 * old;
    this.frontEnd = enlarged(this.frontEnd, new Uint32Array(capacity));
    this.slot = enlarged(this.slot, new Uint32Array(capacity));
    this.kind = enlarged(this.kind, new Uint32Array(capacity));
    this.sector = enlarged(this.sector, new Float64Array(capacity));
    this.region = enlarged(this.region, new Uint32Array(capacity));
    this.partCount = enlarged(this.partCount, new Uint32Array(capacity));
    this.parts = enlarged(this.parts, new Uint32Array(capacity * this.partWords));
    this.tdPending = enlarged(this.tdPending, new Uint32Array(capacity));
    this.status = enlarged(this.status, new Int32Array(capacity));
    this.arrived = enlarged(this.arrived, new Float64Array(capacity));
    this.due = enlarged(this.due, new Float64Array(capacity));
    this.next = enlarged(this.next, new Int32Array(capacity));
    this.previous = enlarged(this.previous, new Int32Array(capacity));
    this.#capacity = capacity;
    this.#addFree(old);
  }

  #addFree(from: number): void {
    for (let request = this.#capacity - 1; request >= from; request--) {
      this.release(request);
    }
  }
}

/** A first-in first-out queue of requests, linked through their table. */
export class Queue {
  readonly #table: RequestTable;
  #head = NONE;
  #tail = NONE;
  /** Requests in the queue. */
  length = 0;

  constructor(table: RequestTable) {
    this.#table = table;
  }

  /** Appends a request that stands in no queue. */
  push(request: number): void {
    const { next, previous } = this.#table;
    next[request] = NONE;
    previous[request] = this.#tail;
    if (this.#tail === NONE) {
      this.#head = request;
    } else {
      next[this.#tail] = request;
    }
    this.#tail = request;
    this.length++;
  }

  /** Takes the oldest request out; only when there is one. */
  shift(): number {
    const request = this.#head;
    this.remove(request);
    return request;
  }

  /** Takes a request out that stands in this queue. */
  remove(request: number): void {
    const { next, previous } = this.#table;
    const before = previous[request] as number;
    const after = next[request] as number;
    if (before === NONE) {
      this.#head = after;
    } else {
      next[before] = after;
    }
    if (after === NONE) {
      this.#tail = before;
    } else {
      previous[after] = before;
    }
    this.length--;
  }
}
