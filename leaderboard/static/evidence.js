"use strict";
// Speedups, intervals and ranks for any weights of the tasks, by the rules that made the page: a task's speedup is
// known with the error of leaving each prompt out in turn, tasks are averaged on the logarithmic scale, and a draft
// is surely ahead of another where the t distribution says so, shared out over all it is set against.
(function () {
  const shared = (window.draftrank = window.draftrank || {});
  const LANCZOS = [
    0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
    12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
  ];

  function logGamma(x) {
    if (x < 0.5) return Math.log(Math.PI / Math.sin(Math.PI * x)) - logGamma(1 - x);
    let sum = LANCZOS[0];
    for (let i = 1; i < LANCZOS.length; i++) sum += LANCZOS[i] / (x - 1 + i);
    const t = x + 6.5;
    return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(sum);
  }

  const offZero = (value) => (Math.abs(value) > 1e-300 ? value : 1e-300);

  // The regularised incomplete beta function by its continued fraction (DLMF 8.17.22).
  function beta(x, a, b) {
    if (x <= 0 || x >= 1) return x >= 1 ? 1 : 0;
    if (x > (a + 1) / (a + b + 2)) return 1 - beta(1 - x, b, a);
    const front = logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x);
    let c = 1;
    let d = 1 / offZero(1 - ((a + b) * x) / (a + 1));
    let fraction = d;
    for (let m = 1; m < 10000; m++) {
      const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
      const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
      let change = 1;
      for (const term of [even, odd]) {
        d = 1 / offZero(1 + term * d);
        c = offZero(1 + term / c);
        change = c * d;
        fraction *= change;
      }
      if (Math.abs(change - 1) < 1e-13) break;
    }
    return (Math.exp(front) * fraction) / a;
  }

  // Probability that a t variable is at most t.
  function tCdf(t, freedom) {
    const square = t * t;
    const tail =
      square < freedom
        ? 0.5 * (1 - beta(square / (freedom + square), 0.5, freedom / 2))
        : 0.5 * beta(freedom / (freedom + square), freedom / 2, 0.5);
    return t > 0 ? 1 - tail : tail;
  }

  function tQuantile(probability, freedom) {
    if (probability < 0.5) return -tQuantile(1 - probability, freedom);
    let low = 0;
    let high = 2;
    while (tCdf(high, freedom) < probability) [low, high] = [high, high * 2];
    while (high - low > 1e-9 * high) {
      const middle = (low + high) / 2;
      if (tCdf(middle, freedom) < probability) low = middle;
      else high = middle;
    }
    return (low + high) / 2;
  }

  // [log speedup, largest deviation, base64 of int16] of a task, as `page_data` packs it.
  function unpack(packed) {
    if (!packed) return null;
    const bytes = atob(packed[2]);
    const left = new Float64Array(bytes.length / 2);
    for (let i = 0; i < left.length; i++) {
      const raw = bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8);
      left[i] = ((raw > 32767 ? raw - 65536 : raw) / 32767) * packed[1];
    }
    return { value: packed[0], left };
  }

  // Sum of squares of a vector, or of the difference of two, times (n-1)/n: a jackknife's variance.
  function variance(one, other) {
    let sum = 0;
    for (let i = 0; i < one.length; i++) {
      const apart = other ? one[i] - other[i] : one[i];
      sum += apart * apart;
    }
    return ((one.length - 1) / one.length) * sum;
  }

  class Evidence {
    // `rows` and `tasks` of the page's data; `confidence` of its intervals.
    constructor(data) {
      this.tasks = data.tasks;
      this.confidence = data.confidence;
      this.rows = data.rows;
      this.found = data.rows.map((row) => this.tasks.map((task) => unpack(row.evidence[task])));
    }

    // The weighted mean of log speedups with its variance and `below` (of Welch and Satterthwaite's formula); null
    // where a task that counts is missing.
    overall(index, weights) {
      return this.sum(weights, (task) => {
        const own = this.found[index][task];
        return own && { value: own.value, variance: variance(own.left), freedom: own.left.length - 1 };
      });
    }

    // The same of one row's speed as a multiple of another's.
    ratio(index, other, weights) {
      if (this.rows[index].group === this.rows[other].group) {
        return this.sum(weights, (task) => {
          const one = this.found[index][task];
          const two = this.found[other][task];
          if (!one || !two || one.left.length !== two.left.length) return null;
          return { value: one.value - two.value, variance: variance(one.left, two.left), freedom: one.left.length - 1 };
        });
      }
      const one = this.overall(index, weights);
      const two = this.overall(other, weights);
      if (!one || !two) return null;
      return { value: one.value - two.value, variance: one.variance + two.variance, below: one.below + two.below };
    }

    sum(weights, ofTask) {
      const all = weights.reduce((sum, weight) => sum + weight, 0);
      const total = { value: 0, variance: 0, below: 0 };
      for (let task = 0; task < weights.length; task++) {
        if (!weights[task]) continue;
        const own = ofTask(task);
        if (!own) return null;
        const share = weights[task] / all;
        const part = share * share * own.variance;
        total.value += share * own.value;
        total.variance += part;
        total.below += (part * part) / own.freedom;
      }
      return all ? total : null;
    }

    interval(found) {
      if (!found.variance) return [Math.exp(found.value), Math.exp(found.value)];
      const reach = tQuantile((1 + this.confidence) / 2, freedomOf(found)) * Math.sqrt(found.variance);
      return [Math.exp(found.value - reach), Math.exp(found.value + reach)];
    }

    // Probability that the ratio is above 1.
    aboveOne(found) {
      if (!found.variance) return 0.5 + 0.5 * Math.sign(found.value);
      return tCdf(found.value / Math.sqrt(found.variance), freedomOf(found));
    }

    // Best and worst rank that cannot be excluded, for each of `indices` in order.
    ranks(indices, weights) {
      const count = indices.length;
      const sure = 1 - (1 - this.confidence) / 2 / Math.max(count - 1, 1);
      const speeds = indices.map((index) => this.overall(index, weights).value);
      const slowestFirst = speeds.map((_, place) => place).sort((a, b) => speeds[a] - speeds[b] || a - b);
      const behind = indices.map(() => new Uint8Array(count));
      const least = tQuantile(sure, 1e9);
      for (let a = 0; a < count; a++) {
        for (let b = 0; b < count; b++) {
          if (speeds[a] <= speeds[b]) continue;
          const found = this.ratio(indices[a], indices[b], weights);
          // No t distribution asks for less than the normal one: most pairs need no closer look.
          if (found && found.value >= least * Math.sqrt(found.variance) && this.aboveOne(found) >= sure) behind[a][b] = 1;
        }
      }
      for (const place of slowestFirst) {
        for (let other = 0; other < count; other++) {
          if (!behind[place][other] || other === place) continue;
          for (let third = 0; third < count; third++) behind[place][third] |= behind[other][third];
        }
      }
      return indices.map((_, place) => {
        let ahead = 0;
        let after = 0;
        for (let other = 0; other < count; other++) {
          ahead += behind[other][place];
          after += behind[place][other];
        }
        return [1 + ahead, count - after];
      });
    }
  }

  const freedomOf = (found) => (found.variance * found.variance) / found.below;

  shared.evidence = { Evidence, tCdf, tQuantile };
})();
